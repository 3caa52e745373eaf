#pragma once

#include <ATen/core/Tensor.h>

#include "src/ops/activation_names.h"

/// \file
/// Activations by torch's operations, one kind at a time, as layers and programs have them.

namespace actnn {

/// Whether the derivative takes only two values, so that one bit per element describes it.
constexpr bool is_piecewise(ActivationKind kind) {
  return kind == ActivationKind::kReLU || kind == ActivationKind::kReLU6 || kind == ActivationKind::kLeakyReLU;
}

/// `slope` is a leaky ReLU's below 0.
at::Tensor activate(ActivationKind kind, const at::Tensor& input, double slope = 0.01);

/// The gradient of a smooth activation's input. `output` is read for sigmoid and tanh, and made if undefined.
at::Tensor smooth_gradient(ActivationKind kind, const at::Tensor& grad, const at::Tensor& input,
                           const at::Tensor& output);

/// Of a smooth activation: the same of a gradient of ones.
at::Tensor smooth_derivative(ActivationKind kind, const at::Tensor& input, const at::Tensor& output);

/// Of a piecewise activation, bool: where the gradient passes as it is. Elsewhere it is 0, or a leaky ReLU's slope
/// times it.
at::Tensor gradient_passes(ActivationKind kind, const at::Tensor& input);

}  // namespace actnn
