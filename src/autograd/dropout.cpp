#include "actnn/autograd/dropout.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "actnn/ops/dropout.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"

namespace actnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kDropout = "actnn::dropout";
constexpr const char* kDropoutInPlace = "actnn::dropout_";

void save_dropout(AutogradContext* ctx, double probability, const at::Tensor& state, c10::SymIntArrayRef stride) {
  ctx->save_for_backward({state});
  ctx->saved_data["probability"] = probability;
  ctx->saved_data["mask_stride"] = stride.vec();
}

at::Tensor dropped_gradient(AutogradContext* ctx, const at::Tensor& grad) {
  const variable_list saved = ctx->get_saved_variables();
  return apply_dropout(grad, ctx->saved_data["probability"].toDouble(), saved[0],
                       ctx->saved_data["mask_stride"].toSymIntVector());
}

/// `apply_dropout` is linear in its input and its own gradient.
class ApplyDropout : public torch::autograd::Function<ApplyDropout> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, double probability, const at::Tensor& state,
                            c10::SymIntArrayRef stride) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save_dropout(ctx, probability, state, stride);
    return apply_dropout(input, probability, state, stride);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return {dropped_gradient(ctx, grad_outputs[0]), {}, {}, {}};
  }
};

at::Tensor apply_dropout_autograd(const at::Tensor& input, double probability, const at::Tensor& state,
                                  c10::SymIntArrayRef stride) {
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return ApplyDropout::apply(input, probability, state, stride);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return apply_dropout(input, probability, state, stride);
}

class Dropout : public torch::autograd::Function<Dropout> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, double probability,
                            const std::optional<at::Tensor>& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, state] = dropout_forward(input, probability, rng_state);
    save_dropout(ctx, probability, state, output.sym_strides());
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return {dropped_gradient(ctx, grad_outputs[0]), {}, {}};
  }
};

class DropoutInPlace : public torch::autograd::Function<DropoutInPlace> {
 public:
  static at::Tensor forward(AutogradContext* ctx, at::Tensor input, double probability,
                            const std::optional<at::Tensor>& rng_state) {
    const at::AutoDispatchBelowAutograd guard;
    const at::Tensor state = dropout_forward_(input, probability, rng_state);
    save_dropout(ctx, probability, state, input.sym_strides());
    ctx->mark_dirty({input});
    return input;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return {dropped_gradient(ctx, grad_outputs[0]), {}, {}};
  }
};

at::Tensor dropout_plain(const at::Tensor& input, double probability, const std::optional<at::Tensor>& rng_state) {
  return std::get<0>(dropout_forward(input, probability, state_for(rng_state, input)));
}

at::Tensor dropout_autograd(const at::Tensor& input, double probability, const std::optional<at::Tensor>& rng_state) {
  check_floating(kDropout, "input", input);
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return Dropout::apply(input, probability, state_for(rng_state, input));
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return dropout_plain(input, probability, rng_state);
}

at::Tensor& dropout_in_place_plain(at::Tensor& input, double probability, const std::optional<at::Tensor>& rng_state) {
  dropout_forward_(input, probability, state_for(rng_state, input));
  return input;
}

at::Tensor& dropout_in_place_autograd(at::Tensor& input, double probability,
                                      const std::optional<at::Tensor>& rng_state) {
  check_floating(kDropoutInPlace, "input", input);
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    DropoutInPlace::apply(input, probability, state_for(rng_state, input));
    return input;
  }
  const at::AutoDispatchBelowAutograd guard;
  return dropout_in_place_plain(input, probability, rng_state);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def("dropout(Tensor input, float probability, Tensor(a!)? rng_state=None) -> Tensor",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def("dropout_(Tensor(a!) input, float probability, Tensor(b!)? rng_state=None) -> Tensor(a!)",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("dropout", dropout_plain);
  m.impl("dropout_", dropout_in_place_plain);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("apply_dropout", apply_dropout_autograd);
  m.impl("dropout", dropout_autograd);
  m.impl("dropout_", dropout_in_place_autograd);
}

at::Tensor dropout(const at::Tensor& input, double probability, bool training,
                   const std::optional<at::Tensor>& rng_state) {
  TORCH_CHECK_VALUE(probability >= 0.0 && probability <= 1.0, kDropout, ": probability must be in [0, 1], got ",
                    probability);
  if (!training || probability == 0.0) {
    return input;
  }
  static const auto kHandle =
      find_op<at::Tensor(const at::Tensor&, double, const std::optional<at::Tensor>&)>(kDropout);
  return kHandle.call(input, probability, rng_state);
}

at::Tensor& dropout_(at::Tensor& input, double probability, bool training, const std::optional<at::Tensor>& rng_state) {
  TORCH_CHECK_VALUE(probability >= 0.0 && probability <= 1.0, kDropoutInPlace, ": probability must be in [0, 1], got ",
                    probability);
  if (!training || probability == 0.0) {
    return input;
  }
  static const auto kHandle =
      find_op<at::Tensor&(at::Tensor&, double, const std::optional<at::Tensor>&)>(kDropoutInPlace);
  return kHandle.call(input, probability, rng_state);
}

}  // namespace actnn
