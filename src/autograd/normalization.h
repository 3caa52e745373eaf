#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>

#include "src/autograd/save_options.h"
#include "src/autograd/saved_activation.h"

/// \file
/// What normalizations save for backward, and which gradients are wanted of them. Backward needs x-hat, the normalized
/// value, and 1 / deviation, not the input: with g the gradient of x-hat, the gradient of the input is (g - mean(g) -
/// x-hat mean(g x-hat)) / deviation. So what is packed is x-hat, whose scale is 1 whatever the input's is: a group may
/// span channels or rows whose inputs differ by orders of magnitude. Torch's backward kernels, given x-hat as an input
/// of mean 0 and deviation 1, compute all but the last division, and the gradients of weight and bias.

namespace actnn {

/// Saves in forward which of weight and bias were given. The function's first arguments are input, then those given.
void save_parameter_presence(torch::autograd::AutogradContext* ctx, bool has_weight, bool has_bias);

/// In backward: whether gradients of input, weight, bias are wanted.
std::array<bool, 3> wanted_gradients(torch::autograd::AutogradContext* ctx);

/// Whether a gradient will be wanted.
bool wants_gradients(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                     const std::optional<at::Tensor>& bias);

/// x-hat = (input - mean) * rstd in the input's dtype, computed in float32 and in this order: the mean may be much
/// larger than the deviation. `mean` and `rstd` broadcast against `input`.
at::Tensor normalized_by(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& rstd);

/// The same of [N, C, ...] by statistics [C]; on CUDA by one kernel.
at::Tensor normalized_by_channel(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& rstd);

/// x-hat of a norm with this weight and bias: its output where it has neither, else what `normalize` computes.
template <class Normalize>
at::Tensor normalized_value(const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& output,
                            const Normalize& normalize) {
  return weight.defined() || bias.defined() ? normalize() : output;
}

// --- Statistics of a sample or a row: layer norm, group norm, RMS norm -----------------------------------------------

/// The tensors of a normalization's forward; what the kind does not have is undefined.
struct Normalization {
  at::Tensor input;
  at::Tensor weight;
  at::Tensor bias;
  at::Tensor rstd;
};

/// What backward gets of them.
struct SavedNormalization {
  at::Tensor normalized;  ///< the copy of x-hat, or, where no gradient needs it, uninitialized
  at::Tensor weight;
  at::Tensor bias;
  at::Tensor rstd;
  std::array<bool, 3> wanted{};  ///< gradients of input, weight, bias

  /// The statistics of x-hat, for torch's kernels.
  at::Tensor zero_mean() const;
  at::Tensor unit_rstd() const;
};

/// Whether backward will need x-hat.
bool needs_normalized(const Normalization& tensors);

/// Saves parameters, 1 / deviation, and a packed copy of `normalized`, x-hat, if that is defined.
void save_normalization_of(torch::autograd::AutogradContext* ctx, const Normalization& tensors,
                           const at::Tensor& normalized, const Quantization& quantization,
                           const std::optional<at::Tensor>& rng_state);

/// The same with the x-hat of `normalized_value`, if backward will need it.
template <class Normalize>
void save_normalization(torch::autograd::AutogradContext* ctx, const Normalization& tensors, const at::Tensor& output,
                        const Quantization& quantization, const std::optional<at::Tensor>& rng_state,
                        const Normalize& normalize) {
  const bool needed = needs_normalized(tensors);
  save_normalization_of(ctx, tensors,
                        needed ? normalized_value(tensors.weight, tensors.bias, output, normalize) : at::Tensor(),
                        quantization, rng_state);
}

SavedNormalization saved_normalization(torch::autograd::AutogradContext* ctx, const at::Tensor& grad_output);

// --- Statistics of a channel: batch norms ----------------------------------------------------------------------------

/// Whether `saving` keeps the input, not x-hat: where it is kept as it is, and where the op that made it has a packed
/// copy, whose groups do not mix channels. Neither costs a pass. So it is with an input without elements.
bool keeps_input(const at::Tensor& input, const SaveOptions& saving);

/// Of x-hat, in place of the input's: mean 0, variance and deviation 1, and the weight by which the gradient of x-hat
/// becomes the input's, weight / deviation. All are float32 [C].
struct UnitStatistics {
  at::Tensor zero;
  at::Tensor one;
  at::Tensor weight;
};
UnitStatistics unit_statistics(const at::Tensor& rstd, const at::Tensor& weight);

}  // namespace actnn
