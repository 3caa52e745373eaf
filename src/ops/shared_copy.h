#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "actnn/core/activation.h"

/// \file
/// One packed copy for all who need a tensor in backward: the op that made the tensor and packed it tells, and those
/// that read it find the copy instead of making their own.

namespace actnn {

/// A sign-split copy (core/sign_split.h) of a tensor whose channels are its second dimension.
struct SharedCopy {
  at::Tensor packed;
  at::Tensor inverse;  ///< from the copy to the tensor: `DecodeMap` [C, 5]
  double slope;
  int64_t bits;
  PackedDerivative derivative = {};

  /// The unbiased copy, channels_last.
  at::Tensor decoded(c10::SymIntArrayRef size, at::ScalarType dtype) const;
};

/// Tells that `copy` is one of `tensor` as it is now. Nothing is kept alive by it: the copy is found as long as both
/// exist.
void share_copy(const at::Tensor& tensor, const SharedCopy& copy);

/// The copy of `tensor`, of all of it and unchanged since; none where a compiler traces.
std::optional<SharedCopy> find_copy(const at::Tensor& tensor);

}  // namespace actnn
