#include "actnn/autograd/linear.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "src/autograd/autocast.h"
#include "src/autograd/save_options.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kLinearName = "actnn::linear";

class Linear : public torch::autograd::Function<Linear> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const OptionalTensor& bias, const SaveOptions& saving) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor output = at::linear(input, weight, bias);
    SavedActivation saved;
    if (wants_grad(weight)) {
      saved = save_activation(ctx, input, saving, Channels::kLast);
    } else {
      save_layout(ctx, input);
    }
    ctx->save_for_backward({wants_grad(input) ? weight : at::Tensor(), saved.data, saved.parameters});
    ctx->saved_data["has_bias"] = bias.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kLinearName);
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<c10::SymInt> input_size = ctx->saved_data["input_size"].toSymIntVector();
    const at::Tensor grad = grad_outputs[0].reshape_symint({-1, grad_outputs[0].sym_size(-1)});
    at::Tensor grad_input;
    at::Tensor grad_weight;
    at::Tensor grad_bias;
    if (ctx->needs_input_grad(0)) {
      grad_input = grad.mm(saved[0]).reshape_symint(input_size);
    }
    if (ctx->needs_input_grad(1)) {
      const at::Tensor input = saved_activation(ctx, {saved[1], saved[2]});
      grad_weight = grad.t().mm(input.reshape_symint({-1, input_size.back()}));
    }
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2)) {
      grad_bias = grad.sum(0);
    }
    return {grad_input, grad_weight, grad_bias, {}};
  }
};

void check_arguments(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                     const SaveOptions& saving) {
  check_floating(kLinearName, "input", input);
  check_floating(kLinearName, "weight", weight);
  check_save_options(kLinearName, input, saving);
  TORCH_CHECK_VALUE(weight.dim() == 2, kLinearName, ": weight must have shape [out_features, in_features], got shape ",
                    weight.sym_sizes());
  TORCH_CHECK_VALUE(input.dim() >= 1 && input.sym_size(-1) == weight.sym_size(1), kLinearName,
                    ": input must have in_features = ", weight.sym_size(1), " as its last dimension, got shape ",
                    input.sym_sizes());
  TORCH_CHECK_VALUE(!bias.has_value() || (bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0)), kLinearName,
                    ": bias must have shape [out_features] = [", weight.sym_size(0), "], got shape ",
                    bias.has_value() ? bias->sym_sizes() : c10::SymIntArrayRef());
}

template <class... Arguments>
at::Tensor linear_autograd(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                           Arguments... arguments) {
  const SaveOptions saving{kLinearName, arguments...};
  check_arguments(input, weight, bias, saving);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return Linear::apply(input, weight, bias, saving);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return at::linear(input, weight, bias);
}

/// Without autograd (inference mode) nothing is saved.
template <class... Arguments>
at::Tensor linear_plain(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                        Arguments... arguments) {
  check_arguments(input, weight, bias, SaveOptions{kLinearName, arguments...});
  return at::linear(input, weight, bias);
}

using LinearSignature = SaveSignature<const at::Tensor&, const at::Tensor&, const OptionalTensor&>;

const c10::TypedOperatorHandle<LinearSignature>& linear_op() {
  static const auto kHandle = find_op<LinearSignature>(kLinearName);
  return kHandle;
}

template <class... Arguments>
at::Tensor linear_autocast(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                           Arguments... arguments) {
  const LowerPrecision lower(input.device().type());
  return linear_op().call(lower.cast(input), lower.cast(weight), lower.cast(bias), arguments...);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(("linear(Tensor input, Tensor weight, Tensor? bias=None, " + kSaveSchema + ") -> Tensor").c_str(),
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("linear", static_cast<LinearSignature*>(linear_plain));
}
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("linear", static_cast<LinearSignature*>(linear_autograd)); }
TORCH_LIBRARY_IMPL(actnn, AutocastCPU, m) { m.impl("linear", static_cast<LinearSignature*>(linear_autocast)); }
TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) { m.impl("linear", static_cast<LinearSignature*>(linear_autocast)); }

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const Quantization& quantization, const std::optional<at::Tensor>& rng_state,
                  const Retention& retention) {
  return call_saving(linear_op(), quantization, retention, rng_state, input, weight, bias);
}

}  // namespace actnn
