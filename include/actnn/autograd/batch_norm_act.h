#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "actnn/ops/norm_act.h"

namespace actnn {

/// Batch norm and the activation after it in one pass, saving one packed tensor for both (core/norm_act.h): a copy of
/// the normalized input of `bits` bits, of which one is, for leaky ReLU and ReLU6, the exact side of the activation's
/// kink; ReLU6 has another exact bit. SiLU and hardswish have `bits` for the copy, from which backward computes their
/// derivative: take 5 or more.
///
/// `input`: [N, C] or [N, C, ...], float32, float16 or bfloat16; a tensor that is not channels_last is copied into that
/// layout, which the result has. `weight`, `bias`, `running_mean`, `running_var`: [C] or none. In training mode the
/// running statistics, if given, are updated as torch does. The result is computed in float32 and rounded once; it
/// equals torch's up to the order of additions. Statistics and gradients are sums in a fixed order: deterministic.
///
/// Gradients, unless the activation is smooth: of bias exact, of weight unbiased, of input unbiased up to a relative
/// Var[x-hat] / n as in `batch_norm`; in evaluation mode exact. Nothing is saved where no gradient is wanted. Double
/// backward raises an error.
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes or shapes; bits outside 2..8.
at::Tensor batch_norm_act(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                          const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                          const std::optional<at::Tensor>& running_var, bool training, double momentum, double eps,
                          const FusedActivation& activation = {ActivationFunction::kLeakyReLU}, int64_t bits = 4,
                          Rounding rounding = Rounding::kDithered,
                          const std::optional<at::Tensor>& rng_state = std::nullopt);

}  // namespace actnn
