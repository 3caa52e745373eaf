#include "src/blocks/activation.h"

#include <ATen/ops/hardswish.h>
#include <ATen/ops/hardswish_backward.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/threshold_backward.h>

namespace actnn::blocks {

at::Tensor activate(const Activation& activation, const at::Tensor& input) {
  switch (activation.kind) {
    case ActivationKind::kReLU:
      return at::relu(input);
    case ActivationKind::kReLU6:
      return at::hardtanh(input, 0, 6);
    case ActivationKind::kLeakyReLU:
      return at::leaky_relu(input, activation.slope);
    case ActivationKind::kSiLU:
      return at::silu(input);
    case ActivationKind::kHardswish:
      return at::hardswish(input);
  }
  return input;
}

at::Tensor derivative(const Activation& activation, const at::Tensor& input) {
  const at::Tensor ones = at::ones_like(input);
  switch (activation.kind) {
    case ActivationKind::kReLU:
      return at::threshold_backward(ones, input, 0);
    case ActivationKind::kReLU6:
      return at::hardtanh_backward(ones, input, 0, 6);
    case ActivationKind::kLeakyReLU:
      return at::leaky_relu_backward(ones, input, activation.slope, /*self_is_result=*/false);
    case ActivationKind::kSiLU:
      return at::silu_backward(ones, input);
    case ActivationKind::kHardswish:
      return at::hardswish_backward(ones, input);
  }
  return ones;
}

}  // namespace actnn::blocks
