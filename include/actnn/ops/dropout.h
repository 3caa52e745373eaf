#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <optional>
#include <tuple>

/// \file
/// Dropout by a counter-based mask (core/dropout.h). The mask is a function of the random state and the position in
/// storage order, so that the state's 16 bytes are all that backward needs.

namespace actnn {

/// Drops elements of a float32, float16 or bfloat16 tensor with `probability` in [0, 1], scales the others by 1 / (1 -
/// probability), and advances `rng_state`; without one, draws from torch's default generator of the device. Returns the
/// output (strides of the input if that is dense, else contiguous) and the state that was used, as a new tensor.
std::tuple<at::Tensor, at::Tensor> dropout_forward(const at::Tensor& input, double probability,
                                                   const std::optional<at::Tensor>& rng_state = std::nullopt);

/// The same in place on a dense tensor; returns the state that was used.
at::Tensor dropout_forward_(at::Tensor& input, double probability,
                            const std::optional<at::Tensor>& rng_state = std::nullopt);

/// Applies the mask and scale of the call that used `state` on a tensor of this `stride`. Differentiable in `input`,
/// any number of times.
at::Tensor apply_dropout(const at::Tensor& input, double probability, const at::Tensor& state,
                         c10::SymIntArrayRef stride);

}  // namespace actnn
