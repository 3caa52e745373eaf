#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "actnn/ops/norm_act.h"

namespace actnn {

/// Batch norm and the activation after it in one pass, saving one packed tensor for both: an exact bit for the side of
/// the activation and `packing.bits` - 1 bits for x-hat (core/sign_split.h). `negative_slope`: 0 is ReLU, 1 no
/// activation, others leaky ReLU. `packing.derivative` names another activation: ReLU6 (1 bit of derivatives, exact),
/// SiLU or hardswish (1..7 bits, rounded at random; they save the normalized input without a kink).
///
/// `input`: [N, C] or [N, C, ...], float32, float16 or bfloat16; a tensor that is not channels_last is copied into that
/// layout, which the result has. `weight`, `bias`, `running_mean`, `running_var`: [C] or none. In training mode the
/// running statistics, if given, are updated as torch does. The result is computed in float32 and rounded once; it
/// equals torch's up to the order of additions. Statistics and gradients are sums in a fixed order: deterministic.
///
/// Gradients: of bias exact, of weight unbiased, of input unbiased up to a relative Var[x-hat] / n as in `batch_norm`;
/// in evaluation mode exact. Nothing is saved where no gradient is wanted. Double backward raises an error.
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes or shapes; bits outside 2..8; bits that derivatives of the
/// activation cannot have.
at::Tensor batch_norm_act(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                          const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                          const std::optional<at::Tensor>& running_var, bool training, double momentum, double eps,
                          double negative_slope = 0.0, const SplitPacking& packing = {},
                          const std::optional<at::Tensor>& rng_state = std::nullopt);

}  // namespace actnn
