#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "actnn/ops/norm_act.h"

namespace actnn {

/// The gradient that both summands of `add_act` get: without a norm, as with a constant one, only the activation
/// counts. Matrices [rows, channels]; `decode` as `sum_channels`, `second_grad` as `norm_act_input_gradient`.
at::Tensor add_act_gradient(const NormActCopies& copies, const at::Tensor& grad,
                            const std::optional<at::Tensor>& second_grad, const at::Tensor& decode);

}  // namespace actnn
