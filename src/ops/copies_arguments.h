#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>
#include <string>

#include "actnn/ops/norm_act.h"
#include "src/ops/activation_names.h"

/// \file
/// The trailing arguments of the ops that read `NormActCopies`, whose first argument is `packed`: in their schema, in
/// their kernels' signature, and in a call.

namespace actnn {

inline const std::string kCopiesSchema =
    "str activation, float slope, int bits, Tensor? input=None, Tensor? channels=None, Tensor? normalized=None, "
    "int normalized_bits=0";

/// A kernel's signature: `packed`, the op's own arguments, then those of the schema above.
template <class Result, class... Own>
using CopiesSignature = Result(const std::optional<at::Tensor>& packed, Own..., c10::string_view activation,
                               double slope, int64_t bits, const std::optional<at::Tensor>& input,
                               const std::optional<at::Tensor>& channels, const std::optional<at::Tensor>& normalized,
                               int64_t normalized_bits);

/// The same as a struct. Errors, for an unknown activation, name `op`.
inline NormActCopies copies_of(const char* op, const std::optional<at::Tensor>& packed, c10::string_view activation,
                               double slope, int64_t bits, const std::optional<at::Tensor>& input,
                               const std::optional<at::Tensor>& channels, const std::optional<at::Tensor>& normalized,
                               int64_t normalized_bits) {
  return {.packed = packed,
          .activation = fused_activation(op, activation, slope),
          .bits = bits,
          .input = input,
          .channels = channels,
          .normalized = normalized,
          .normalized_bits = normalized_bits};
}

/// Calls an op with its own arguments and the copies that it reads.
template <class Op, class... Own>
auto call_with_copies(const Op& op, const NormActCopies& copies, const Own&... own) {
  return op.call(copies.packed, own..., name_of(copies.activation.function), copies.activation.slope, copies.bits,
                 copies.input, copies.channels, copies.normalized, copies.normalized_bits);
}

}  // namespace actnn
