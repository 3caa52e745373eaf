#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <variant>

#include "actnn/core/activation.h"
#include "src/ops/column_copy.h"

/// \file
/// One packed copy for all ops that need a tensor in backward: the op that made and packed the tensor registers its
/// copy, and those that read the tensor find it instead of making their own.

namespace actnn {

/// A copy of a tensor whose channels are its second dimension, by the pass that made it (`norm_act_output`).
struct PassCopy {
  at::Tensor packed;
  at::Tensor decode;  ///< from the copy to the tensor: `DecodeMap` [C, 5]
  FusedActivation activation;
  int64_t bits;

  /// The copy, channels_last.
  at::Tensor decoded(c10::SymIntArrayRef size, at::ScalarType dtype) const;
};

/// A copy of what a smooth activation has made the tensor of, from which that of the tensor is computed.
struct InputCopy {
  at::Tensor packed;
  PackedForm form;
  ActivationKind kind;
};

using SharedCopy = std::variant<PassCopy, InputCopy>;

/// Registers `copy` as one of `tensor` as it is now. Keeps neither alive: the copy is found as long as both exist.
/// Under hooks of saved tensors it lives as long as the tensor.
void share_copy(const at::Tensor& tensor, const SharedCopy& copy);

/// The copy of all of `tensor`, unchanged since; none while a compiler traces.
std::optional<SharedCopy> find_copy(const at::Tensor& tensor);

/// The same, if it is a pass's.
std::optional<PassCopy> find_pass_copy(const at::Tensor& tensor);

}  // namespace actnn
