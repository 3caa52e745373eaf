#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <cstdint>
#include <optional>

#include "actnn/ops/quantization.h"

/// \file
/// Checks of arguments that several differentiable functions take. Failures are the sentences of `src/ops/checks.h`.

namespace actnn {

/// The arguments that say how `op` quantizes what it saves of `input`, checked.
Quantization check_quantization(const char* op, const at::Tensor& input, int64_t bits, int64_t group_size,
                                c10::string_view rounding, const std::optional<at::Tensor>& rng_state);

/// None, or a floating tensor of shape `size` on the device of `input`. `names` are the shape's letters, "[C]".
void check_parameter(const char* op, const char* argument, const std::optional<at::Tensor>& parameter,
                     const char* names, c10::SymIntArrayRef size, const at::Tensor& input);

}  // namespace actnn
