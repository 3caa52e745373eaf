#include "actnn/autograd/relu.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/relu.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "actnn/ops/mask.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"

namespace actnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kRelu = "actnn::relu";
constexpr const char* kReluInPlace = "actnn::relu_";

/// `apply_mask` is linear in its input and its own gradient.
class ApplyMask : public torch::autograd::Function<ApplyMask> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& mask,
                            c10::SymIntArrayRef stride) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({mask});
    ctx->saved_data["mask_stride"] = stride.vec();
    return apply_mask(input, mask, stride);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    return {apply_mask(grad_outputs[0], saved[0], ctx->saved_data["mask_stride"].toSymIntVector()), {}, {}};
  }
};

at::Tensor apply_mask_autograd(const at::Tensor& input, const at::Tensor& mask, c10::SymIntArrayRef stride) {
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return ApplyMask::apply(input, mask, stride);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return apply_mask(input, mask, stride);
}

void save_mask(AutogradContext* ctx, const at::Tensor& mask, const at::Tensor& output) {
  ctx->save_for_backward({mask});
  ctx->saved_data["mask_stride"] = output.sym_strides().vec();
}

variable_list masked_gradient(AutogradContext* ctx, const at::Tensor& grad) {
  const variable_list saved = ctx->get_saved_variables();
  return {apply_mask(grad, saved[0], ctx->saved_data["mask_stride"].toSymIntVector())};
}

class Relu : public torch::autograd::Function<Relu> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, mask] = relu_pack(input);
    save_mask(ctx, mask, output);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return masked_gradient(ctx, grad_outputs[0]);
  }
};

class ReluInPlace : public torch::autograd::Function<ReluInPlace> {
 public:
  static at::Tensor forward(AutogradContext* ctx, at::Tensor input) {
    const at::AutoDispatchBelowAutograd guard;
    const at::Tensor mask = relu_pack_(input);
    save_mask(ctx, mask, input);
    ctx->mark_dirty({input});
    return input;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return masked_gradient(ctx, grad_outputs[0]);
  }
};

at::Tensor relu_autograd(const at::Tensor& input) {
  check_floating(kRelu, "input", input);
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return Relu::apply(input);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return at::relu(input);
}

at::Tensor relu_plain(const at::Tensor& input) {
  check_floating(kRelu, "input", input);
  return at::relu(input);
}

at::Tensor& relu_in_place_autograd(at::Tensor& input) {
  check_floating(kReluInPlace, "input", input);
  // What is not dense cannot be packed in place: torch's own in-place ReLU handles it, saving its result.
  if (at::GradMode::is_enabled() && wants_grad(input) && input.is_non_overlapping_and_dense()) {
    ReluInPlace::apply(input);
    return input;
  }
  return at::relu_(input);
}

at::Tensor& relu_in_place_plain(at::Tensor& input) {
  check_floating(kReluInPlace, "input", input);
  return at::relu_(input);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def("relu(Tensor input) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("relu_(Tensor(a!) input) -> Tensor(a!)", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("relu", relu_plain);
  m.impl("relu_", relu_in_place_plain);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("apply_mask", apply_mask_autograd);
  m.impl("relu", relu_autograd);
  m.impl("relu_", relu_in_place_autograd);
}

at::Tensor relu(const at::Tensor& input) {
  static const auto kHandle = find_op<at::Tensor(const at::Tensor&)>(kRelu);
  return kHandle.call(input);
}

at::Tensor& relu_(at::Tensor& input) {
  static const auto kHandle = find_op<at::Tensor&(at::Tensor&)>(kReluInPlace);
  return kHandle.call(input);
}

}  // namespace actnn
