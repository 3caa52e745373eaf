#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "actnn/autograd/activation.h"
#include "actnn/ops/mask.h"
#include "src/autograd/saved_activation.h"
#include "src/autograd/saved_mask.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"

// Functions of two slopes: a bit per element says which one holds.

namespace actnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct LeakyRelu {
  static constexpr const char* kPiecewiseActivationName = "actnn::leaky_relu";
  double negative_slope;

  void check() const {}
  at::Tensor value(const at::Tensor& input) const { return at::leaky_relu(input, negative_slope); }
  at::Tensor& overwrite(at::Tensor& input) const { return at::leaky_relu_(input, negative_slope); }
  at::Tensor mask(const at::Tensor& input) const { return input.gt(0); }
  double other_slope() const { return negative_slope; }
};

struct Hardtanh {
  static constexpr const char* kPiecewiseActivationName = "actnn::hardtanh";
  double min_val;
  double max_val;

  void check() const {
    TORCH_CHECK_VALUE(min_val <= max_val, kPiecewiseActivationName, ": min_val must be at most max_val, got ", min_val,
                      " and ", max_val);
  }
  at::Tensor value(const at::Tensor& input) const { return at::hardtanh(input, min_val, max_val); }
  at::Tensor& overwrite(at::Tensor& input) const { return at::hardtanh_(input, min_val, max_val); }
  /// By torch's own comparison, which rounds the bounds in another way than a comparison of tensors.
  at::Tensor mask(const at::Tensor& input) const {
    return at::hardtanh_backward(at::ones_like(input), input, min_val, max_val).to(at::kBool);
  }
  double other_slope() const { return 0; }
};

/// The gradient where the mask is set, else `other_slope` times it; differentiable.
at::Tensor sloped_gradient(AutogradContext* ctx, const at::Tensor& grad) {
  const double other_slope = ctx->saved_data["other_slope"].toDouble();
  if (other_slope == 0) {
    return apply_mask(grad, ctx->get_saved_variables()[0], ctx->saved_data["mask_stride"].toSymIntVector());
  }
  return at::where(saved_mask(ctx, 0), grad, grad.mul(other_slope));
}

template <class Activation>
void save_slopes(AutogradContext* ctx, const at::Tensor& input, const Activation& activation) {
  ctx->save_for_backward({packed_mask(ctx, activation.mask(input))});
  ctx->saved_data["other_slope"] = activation.other_slope();
}

template <class Activation>
class Piecewise : public torch::autograd::Function<Piecewise<Activation>> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const Activation& activation) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save_slopes(ctx, input, activation);
    return activation.value(input);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return {sloped_gradient(ctx, grad_outputs[0]), {}};
  }
};

template <class Activation>
class PiecewiseInPlace : public torch::autograd::Function<PiecewiseInPlace<Activation>> {
 public:
  static at::Tensor forward(AutogradContext* ctx, at::Tensor input, const Activation& activation) {
    const at::AutoDispatchBelowAutograd guard;
    save_slopes(ctx, input, activation);
    activation.overwrite(input);
    ctx->mark_dirty({input});
    return input;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return {sloped_gradient(ctx, grad_outputs[0]), {}};
  }
};

template <class Activation>
at::Tensor piecewise(const at::Tensor& input, const Activation& activation) {
  check_floating(Activation::kPiecewiseActivationName, "input", input);
  activation.check();
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return Piecewise<Activation>::apply(input, activation);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return activation.value(input);
}

template <class Activation>
at::Tensor& piecewise_in_place(at::Tensor& input, const Activation& activation, bool differentiable) {
  check_floating(Activation::kPiecewiseActivationName, "input", input);
  activation.check();
  if (differentiable && at::GradMode::is_enabled() && wants_grad(input)) {
    PiecewiseInPlace<Activation>::apply(input, activation);
    return input;
  }
  return activation.overwrite(input);
}

at::Tensor leaky_relu_kernel(const at::Tensor& input, double negative_slope) {
  return piecewise(input, LeakyRelu{negative_slope});
}

template <bool kDifferentiable>
at::Tensor& leaky_relu_in_place(at::Tensor& input, double negative_slope) {
  return piecewise_in_place(input, LeakyRelu{negative_slope}, kDifferentiable);
}

at::Tensor hardtanh_kernel(const at::Tensor& input, double min_val, double max_val) {
  return piecewise(input, Hardtanh{min_val, max_val});
}

template <bool kDifferentiable>
at::Tensor& hardtanh_in_place(at::Tensor& input, double min_val, double max_val) {
  return piecewise_in_place(input, Hardtanh{min_val, max_val}, kDifferentiable);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("leaky_relu(Tensor input, float negative_slope=0.01) -> Tensor", tags);
  m.def("leaky_relu_(Tensor(a!) input, float negative_slope=0.01) -> Tensor(a!)", tags);
  m.def("hardtanh(Tensor input, float min_val=-1, float max_val=1) -> Tensor", tags);
  m.def("hardtanh_(Tensor(a!) input, float min_val=-1, float max_val=1) -> Tensor(a!)", tags);
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("leaky_relu", leaky_relu_kernel);
  m.impl("leaky_relu_", leaky_relu_in_place<false>);
  m.impl("hardtanh", hardtanh_kernel);
  m.impl("hardtanh_", hardtanh_in_place<false>);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("leaky_relu", leaky_relu_kernel);
  m.impl("leaky_relu_", leaky_relu_in_place<true>);
  m.impl("hardtanh", hardtanh_kernel);
  m.impl("hardtanh_", hardtanh_in_place<true>);
}

at::Tensor leaky_relu(const at::Tensor& input, double negative_slope) {
  static const auto kHandle = find_op<decltype(leaky_relu_kernel)>(LeakyRelu::kPiecewiseActivationName);
  return kHandle.call(input, negative_slope);
}

at::Tensor& leaky_relu_(at::Tensor& input, double negative_slope) {
  static const auto kHandle = find_op<decltype(leaky_relu_in_place<true>)>("actnn::leaky_relu_");
  return kHandle.call(input, negative_slope);
}

at::Tensor hardtanh(const at::Tensor& input, double min_val, double max_val) {
  static const auto kHandle = find_op<decltype(hardtanh_kernel)>(Hardtanh::kPiecewiseActivationName);
  return kHandle.call(input, min_val, max_val);
}

at::Tensor& hardtanh_(at::Tensor& input, double min_val, double max_val) {
  static const auto kHandle = find_op<decltype(hardtanh_in_place<true>)>("actnn::hardtanh_");
  return kHandle.call(input, min_val, max_val);
}

}  // namespace actnn
