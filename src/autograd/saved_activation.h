#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <vector>

#include "actnn/core/activation.h"
#include "src/autograd/save_options.h"
#include "src/ops/column_copy.h"
#include "src/ops/shared_copy.h"

/// \file
/// What the differentiable functions share: how an activation is saved for backward, and checks.

namespace actnn {

/// Saves size, strides and dtype of `input` in `ctx`, for `activation_like` and `unpack_saved`.
void save_layout(torch::autograd::AutogradContext* ctx, const at::Tensor& input);

/// The random state to call an op with: the caller's, or none, for which the op draws from torch's generator without a
/// launch of its own. A compiler could move such an op into backward, together with the full activation; while one
/// traces, the op therefore gets a state to advance, which keeps it in forward.
std::optional<at::Tensor> state_for(const std::optional<at::Tensor>& rng_state, const at::Tensor& input);

/// A saved activation: what the caller saves with `ctx->save_for_backward`.
struct SavedActivation {
  at::Tensor data;        ///< packed, or the activation itself
  at::Tensor parameters;  ///< bits of samples if each has its own, the decode map if the copy is shared
};

/// Whether the pass that made `input` has a packed copy (shared_copy.h), and `retention` allows another's.
bool has_pass_copy(const at::Tensor& input, const Retention& retention);

/// Saves `input`, as `saving` says, and its layout in `ctx`. A group size of 0 stands for one group for the whole
/// tensor, or for each sample if each has its own bits. Where the op that made `input` has a packed copy, that one is
/// saved instead of another, unless samples have their own bits or the copy is to be moved. With one bit width, an
/// input of `channels` is packed in column groups (ops/columns.h) if the group size is one of theirs.
SavedActivation save_activation(torch::autograd::AutogradContext* ctx, const at::Tensor& input,
                                const SaveOptions& saving, std::optional<Channels> channels = std::nullopt);

/// The saved activation, unpacked: unbiased, or exact.
at::Tensor saved_activation(torch::autograd::AutogradContext* ctx, const SavedActivation& saved);

/// The simple case of the two above: packed with one bit width, and unpacked.
at::Tensor save_packed(torch::autograd::AutogradContext* ctx, const at::Tensor& input, const Quantization& quantization,
                       const std::optional<at::Tensor>& rng_state, std::optional<Channels> channels = std::nullopt);
at::Tensor unpack_saved(torch::autograd::AutogradContext* ctx, const at::Tensor& packed);

/// What `save_packed` saved of a smooth activation's input, for those who read its output; none if that lies otherwise
/// in memory, or while a compiler traces.
std::optional<InputCopy> saved_input_copy(torch::autograd::AutogradContext* ctx, const at::Tensor& packed,
                                          ActivationKind kind, const at::Tensor& output);

/// Checks of an op's `saving`; `input` is the activation.
void check_save_options(const char* op, const at::Tensor& input, const SaveOptions& saving);

/// An uninitialized tensor of the saved layout, for backward ops that take the activation but read only its shape.
at::Tensor activation_like(torch::autograd::AutogradContext* ctx, const at::Tensor& like);

/// A pass's activation, among what an op saves.
void save_fused_activation(torch::autograd::AutogradContext* ctx, const FusedActivation& activation);
FusedActivation saved_fused_activation(torch::autograd::AutogradContext* ctx);

/// Bits of a copy in a pass's packed form, of which the side is one where the activation has a kink.
inline constexpr int64_t kFewestCopyBits = 2;
constexpr int64_t code_bits(const FusedActivation& activation, int64_t bits) {
  return has_kink(activation.function) ? bits - 1 : bits;
}

/// Raises an error if a backward is being differentiated: `op`'s gradient contains a quantized copy, whose derivative
/// with respect to the activation is lost.
void refuse_double_backward(const char* op);

/// Whether `tensor` is defined and requires a gradient.
inline bool wants_grad(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() && tensor->defined() && tensor->requires_grad();
}

/// `list` itself if it has `dimensions` entries, its one entry repeated if it has one; else an error.
std::vector<int64_t> expand_list(const char* op, const char* argument, c10::IntArrayRef list, size_t dimensions);

}  // namespace actnn
