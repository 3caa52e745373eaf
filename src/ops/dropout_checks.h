#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <optional>

#include "actnn/core/scalar_types.h"

/// \file
/// The argument checks of the dropout ops, for every device, and the tensor that holds a used random state.

namespace actnn {

ElementType check_dropout_forward(const at::Tensor& input, double probability,
                                  const std::optional<at::Tensor>& rng_state);
ElementType check_dropout_forward_in_place(const at::Tensor& input, double probability,
                                           const std::optional<at::Tensor>& rng_state);
ElementType check_apply_dropout(const at::Tensor& input, double probability, const at::Tensor& state,
                                c10::SymIntArrayRef stride);

/// An uninitialized {seed, offset} on the device of `input`.
at::Tensor empty_rng_state(const at::Tensor& input);

}  // namespace actnn
