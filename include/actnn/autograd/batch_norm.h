#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "actnn/autograd/retention.h"
#include "actnn/ops/quantization.h"

namespace actnn {

/// `at::batch_norm`, saving a quantized copy of x-hat, the normalized input, for backward: its scale is 1 whatever
/// units the channels have. Where the input is kept exactly, or has a packed copy already, that is saved instead.
///
/// `input`: [N, C] or [N, C, ...]; `weight`, `bias`, `running_mean`, `running_var`: [C] or none. In training mode the
/// running statistics, if given, are updated as torch does. The result and the gradient of bias are exact. The gradient
/// of weight is unbiased. The gradient of input contains a product of two copied values, so that its expectation
/// differs from the exact gradient by a relative Var[x-hat] / n, where n is the number of elements of a channel; in
/// evaluation mode it does not depend on the copy and is exact. Saves nothing but per-channel statistics
/// where the copy is not needed. Double backward raises an error.
at::Tensor batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                      const std::optional<at::Tensor>& running_var, bool training, double momentum, double eps,
                      const Quantization& quantization = {}, const std::optional<at::Tensor>& rng_state = std::nullopt,
                      const Retention& retention = {});

}  // namespace actnn
