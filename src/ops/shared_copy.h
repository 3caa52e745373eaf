#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "actnn/core/activation.h"

/// \file
/// One packed copy for all ops that need a tensor in backward: the op that made and packed the tensor registers its
/// copy, and those that read the tensor find it instead of making their own.

namespace actnn {

/// A copy of a tensor whose channels are its second dimension, by the pass that made it (`norm_act_output`).
struct SharedCopy {
  at::Tensor packed;
  at::Tensor decode;  ///< from the copy to the tensor: `DecodeMap` [C, 5]
  FusedActivation activation;
  int64_t bits;

  /// The copy, channels_last.
  at::Tensor decoded(c10::SymIntArrayRef size, at::ScalarType dtype) const;
};

/// Registers `copy` as one of `tensor` as it is now. Keeps neither alive: the copy is found as long as both exist.
void share_copy(const at::Tensor& tensor, const SharedCopy& copy);

/// The copy of all of `tensor`, unchanged since; none while a compiler traces.
std::optional<SharedCopy> find_copy(const at::Tensor& tensor);

}  // namespace actnn
