#include "src/ops/activation_functions.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/hardswish.h>
#include <ATen/ops/hardswish_backward.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <c10/util/Exception.h>

namespace actnn {

at::Tensor activate(ActivationKind kind, const at::Tensor& input, double slope) {
  switch (kind) {
    case ActivationKind::kReLU:
      return at::relu(input);
    case ActivationKind::kReLU6:
      return at::hardtanh(input, 0, 6);
    case ActivationKind::kLeakyReLU:
      return at::leaky_relu(input, slope);
    case ActivationKind::kSiLU:
      return at::silu(input);
    case ActivationKind::kHardswish:
      return at::hardswish(input);
    case ActivationKind::kGELU:
      return at::gelu(input);
    case ActivationKind::kGELUTanh:
      return at::gelu(input, "tanh");
    case ActivationKind::kSigmoid:
      return at::sigmoid(input);
    case ActivationKind::kTanh:
      return at::tanh(input);
  }
  TORCH_INTERNAL_ASSERT(false, "activation of kind ", static_cast<int>(kind));
}

at::Tensor smooth_gradient(ActivationKind kind, const at::Tensor& grad, const at::Tensor& input,
                           const at::Tensor& output) {
  switch (kind) {
    case ActivationKind::kSiLU:
      return at::silu_backward(grad, input);
    case ActivationKind::kHardswish:
      return at::hardswish_backward(grad, input);
    case ActivationKind::kGELU:
      return at::gelu_backward(grad, input);
    case ActivationKind::kGELUTanh:
      return at::gelu_backward(grad, input, "tanh");
    case ActivationKind::kSigmoid:
      return at::sigmoid_backward(grad, output.defined() ? output : at::sigmoid(input));
    case ActivationKind::kTanh:
      return at::tanh_backward(grad, output.defined() ? output : at::tanh(input));
    default:
      TORCH_INTERNAL_ASSERT(false, name_of(kind), " is not smooth");
  }
}

at::Tensor smooth_derivative(ActivationKind kind, const at::Tensor& input, const at::Tensor& output) {
  return smooth_gradient(kind, at::ones_like(input), input, output);
}

at::Tensor gradient_passes(ActivationKind kind, const at::Tensor& input) {
  switch (kind) {
    case ActivationKind::kReLU:
      return input.le(0).logical_not_();
    case ActivationKind::kReLU6:
      return input.le(0).logical_or_(input.ge(6)).logical_not_();
    case ActivationKind::kLeakyReLU:
      return input.gt(0);
    default:
      TORCH_INTERNAL_ASSERT(false, name_of(kind), " is not linear piece by piece");
  }
}

}  // namespace actnn
