#include "actnn/autograd/linear.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "src/autograd/autocast.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"

namespace actnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "actnn::linear";

class Linear : public torch::autograd::Function<Linear> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const Quantization& quantization,
                            const std::optional<at::Tensor>& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor output = at::linear(input, weight, bias);
    at::Tensor packed;
    if (wants_grad(weight)) {
      packed = pack_activation(ctx, input, quantization, rng_state);
    } else {
      remember_layout(ctx, input);
    }
    ctx->save_for_backward({packed, wants_grad(input) ? weight : at::Tensor()});
    ctx->saved_data["has_bias"] = bias.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kOp);
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<c10::SymInt> input_size = ctx->saved_data["input_size"].toSymIntVector();
    const at::Tensor grad = grad_outputs[0].reshape_symint({-1, grad_outputs[0].sym_size(-1)});
    at::Tensor grad_input;
    at::Tensor grad_weight;
    at::Tensor grad_bias;
    if (ctx->needs_input_grad(0)) {
      grad_input = grad.mm(saved[1]).reshape_symint(input_size);
    }
    if (ctx->needs_input_grad(1)) {
      const at::Tensor input = unpack_activation(ctx, saved[0]);
      grad_weight = grad.t().mm(input.reshape_symint({-1, input_size.back()}));
    }
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2)) {
      grad_bias = grad.sum(0);
    }
    return {grad_input, grad_weight, grad_bias, {}, {}};
  }
};

Quantization check_arguments(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                             int64_t bits, int64_t group_size, bool stochastic) {
  check_floating(kOp, "input", input);
  check_floating(kOp, "weight", weight);
  check_bits(kOp, bits);
  check_group_size(kOp, group_size);
  TORCH_CHECK_VALUE(weight.dim() == 2, kOp, ": weight must have shape [out_features, in_features], got shape ",
                    weight.sym_sizes());
  TORCH_CHECK_VALUE(input.dim() >= 1 && input.sym_size(-1) == weight.sym_size(1), kOp,
                    ": input must have in_features = ", weight.sym_size(1), " as its last dimension, got shape ",
                    input.sym_sizes());
  TORCH_CHECK_VALUE(!bias.has_value() || (bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0)), kOp,
                    ": bias must have shape [out_features] = [", weight.sym_size(0), "], got shape ",
                    bias.has_value() ? bias->sym_sizes() : c10::SymIntArrayRef());
  return {.bits = bits, .group_size = group_size, .stochastic = stochastic};
}

at::Tensor linear_autograd(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                           int64_t bits, int64_t group_size, bool stochastic,
                           const std::optional<at::Tensor>& rng_state) {
  const Quantization quantization = check_arguments(input, weight, bias, bits, group_size, stochastic);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return Linear::apply(input, weight, bias, quantization, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return at::linear(input, weight, bias);
}

/// Without autograd (inference mode) nothing is saved.
at::Tensor linear_plain(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        int64_t bits, int64_t group_size, bool stochastic,
                        const std::optional<at::Tensor>& /*rng_state*/) {
  check_arguments(input, weight, bias, bits, group_size, stochastic);
  return at::linear(input, weight, bias);
}

using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, int64_t, int64_t,
                             bool, const std::optional<at::Tensor>&);

const c10::TypedOperatorHandle<Signature>& linear_op() {
  static const auto kHandle = c10::Dispatcher::singleton().findSchemaOrThrow(kOp, "").typed<Signature>();
  return kHandle;
}

at::Tensor linear_autocast(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                           int64_t bits, int64_t group_size, bool stochastic,
                           const std::optional<at::Tensor>& rng_state) {
  const LowerPrecision lower(input.device().type());
  return linear_op().call(lower.cast(input), lower.cast(weight), lower.cast(bias), bits, group_size, stochastic,
                          rng_state);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "linear(Tensor input, Tensor weight, Tensor? bias=None, int bits=4, int group_size=256, bool stochastic=True, "
      "Tensor(a!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("linear", linear_plain); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("linear", linear_autograd); }
TORCH_LIBRARY_IMPL(actnn, AutocastCPU, m) { m.impl("linear", linear_autocast); }
TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) { m.impl("linear", linear_autocast); }

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const Quantization& quantization, const std::optional<at::Tensor>& rng_state) {
  return linear_op().call(input, weight, bias, quantization.bits, quantization.group_size, quantization.stochastic,
                          rng_state);
}

}  // namespace actnn
