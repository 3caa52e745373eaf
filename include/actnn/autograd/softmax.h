#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "actnn/ops/quantization.h"

/// \file
/// Softmax and its logarithm for float32, float16 and bfloat16. Results are torch's, bit for bit; gradients are
/// unbiased; double backward raises an error. Autocast on CUDA computes in float32, as torch does.

namespace actnn {

/// `at::softmax` over dimension `dim`. The gradient y * (g - sum(g * y)) is quadratic in the output y, so that two
/// independently rounded copies of y are saved, twice `bits` + 0.125 bit per element: the expectation of a product of
/// independent copies is the product of their expectations. Rounded to nearest, one copy is saved.
at::Tensor softmax(const at::Tensor& input, int64_t dim, const Quantization& quantization = {},
                   const std::optional<at::Tensor>& rng_state = std::nullopt);

/// `at::log_softmax` over dimension `dim`. The gradient g - exp(y) * sum(g) is linear in exp(y), of which one copy is
/// saved.
at::Tensor log_softmax(const at::Tensor& input, int64_t dim, const Quantization& quantization = {},
                       const std::optional<at::Tensor>& rng_state = std::nullopt);

}  // namespace actnn
