#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "actnn/ops/norm_act.h"

namespace actnn {

/// The end of a residual block: activation of `input` + `residual`, saving an exact bit per element for the side of the
/// activation. With `bits` - 1 more bits it makes the copy that the layers after it read (`batch_norm_act`).
/// `negative_slope`: 0 is ReLU; with 1, no activation, all bits are the copy's.
///
/// Both tensors: [N, C] or [N, C, ...] of one shape, dtype (float32, float16, bfloat16) and device; tensors that are
/// not channels_last are copied into that layout, which the result has. The sum is rounded once, after the activation.
/// Gradients are exact. Nothing is saved where none is wanted.
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes, shapes or devices; bits outside 2..8.
at::Tensor add_act(const at::Tensor& input, const at::Tensor& residual, double negative_slope = 0.0, int64_t bits = 3,
                   Rounding rounding = Rounding::kDithered, const std::optional<at::Tensor>& rng_state = std::nullopt);

}  // namespace actnn
