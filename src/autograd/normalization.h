#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>

#include "actnn/ops/quantization.h"

/// \file
/// What normalizations by a sample's own statistics save for backward: layer norm, group norm, RMS norm. Which
/// gradients are wanted of these and of batch norms.

namespace actnn {

/// The tensors of a normalization's forward; what the kind does not have is undefined.
struct Normalization {
  at::Tensor input;
  at::Tensor weight;
  at::Tensor bias;
  at::Tensor mean;
  at::Tensor rstd;
};

/// What backward gets of them: `input` is the copy, or, where no gradient needs it, uninitialized.
struct SavedNormalization : Normalization {
  std::array<bool, 3> wanted{};  ///< gradients of input, weight, bias
};

/// Saves in forward which of weight and bias were given. The function's first arguments are input, then those given.
void save_parameter_presence(torch::autograd::AutogradContext* ctx, bool has_weight, bool has_bias);

/// In backward: whether gradients of input, weight, bias are wanted.
std::array<bool, 3> wanted_gradients(torch::autograd::AutogradContext* ctx);

/// Whether a gradient will be wanted.
bool wants_gradients(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                     const std::optional<at::Tensor>& bias);

/// Saves parameters and statistics, and a packed copy of the input if the gradient of input or weight is wanted. The
/// function's first arguments are input, weight and bias, where `has_weight` and `has_bias`.
void save_normalization(torch::autograd::AutogradContext* ctx, const Normalization& tensors, bool has_weight,
                        bool has_bias, const Quantization& quantization, const std::optional<at::Tensor>& rng_state);

SavedNormalization saved_normalization(torch::autograd::AutogradContext* ctx, const at::Tensor& grad_output);

}  // namespace actnn
