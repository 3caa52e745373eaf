#include "actnn/autograd/batch_norm_act.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "src/autograd/batch_norm_arguments.h"
#include "src/autograd/normalization.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/activation_names.h"
#include "src/ops/channel_matrix.h"
#include "src/ops/dispatch.h"
#include "src/ops/shared_copy.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kBatchNormActName = "actnn::batch_norm_act";

OptionalTensor if_defined(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? tensor : std::nullopt;
}

/// The results of one forward.
struct Normalized {
  at::Tensor y;  ///< matrix
  at::Tensor packed;
  at::Tensor decode;
  at::Tensor rstd;
};

Normalized normalize(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                     const BatchNormStatistics& statistics, const FusedActivation& activation,
                     const NormActPacking& packing, const OptionalTensor& rng_state) {
  const at::Tensor x = as_matrix(input);
  const bool kinked = has_kink(activation.function);
  auto [channels, decode, rstd] =
      statistics.training
          ? batch_norm_channels(x, in_float(weight), in_float(bias), if_defined(statistics.running_mean),
                                if_defined(statistics.running_var), {}, statistics.momentum, statistics.eps, kinked)
          : norm_act_channels(*in_float(statistics.running_mean), *in_float(statistics.running_var), in_float(weight),
                              in_float(bias), statistics.eps, kinked);
  auto [y, packed] = norm_act(x, std::nullopt, channels, activation, packing, rng_state);
  return {std::move(y), std::move(packed), std::move(decode), std::move(rstd)};
}

at::Tensor without_copies(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                          const BatchNormStatistics& statistics, const FusedActivation& activation) {
  const NormActPacking nothing{.bits = std::nullopt};
  const at::Tensor y = normalize(input, weight, bias, statistics, activation, nothing, std::nullopt).y;
  return from_matrix(y, input.sym_sizes());
}

class BatchNormAct : public torch::autograd::Function<BatchNormAct> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& bias, const BatchNormStatistics& statistics,
                            const FusedActivation& activation, const NormActPacking& packing,
                            const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Normalized normalized =
        normalize(input, weight, bias, statistics, activation, packing, state_for(rng_state, input));
    ctx->save_for_backward({normalized.packed, normalized.decode, normalized.rstd, weight.value_or(at::Tensor())});
    auto& data = ctx->saved_data;
    save_parameter_presence(ctx, weight.has_value(), bias.has_value());
    data["training"] = statistics.training;
    data["bits"] = *packing.bits;
    save_fused_activation(ctx, activation);
    at::Tensor output = from_matrix(normalized.y, input.sym_sizes());
    share_copy(output, PassCopy{normalized.packed, normalized.decode, activation, *packing.bits});
    return output;
  }

  // Gradients of weight and bias are float32; autograd casts them.
  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kBatchNormActName);
    auto& data = ctx->saved_data;
    const variable_list saved = ctx->get_saved_variables();
    const auto [wants_input, wants_weight, wants_bias] = wanted_gradients(ctx);
    const NormActCopies copies{
        .packed = saved[0], .activation = saved_fused_activation(ctx), .bits = data["bits"].toInt()};

    const at::Tensor grad = as_matrix(grad_outputs[0]);
    const c10::SymInt count = data["training"].toBool() ? grad.sym_size(0) : c10::SymInt(0);
    const auto [gradients, grad_weight, grad_bias] =
        norm_act_sums_and_gradients(copies, grad, std::nullopt, saved[1], in_float(saved[3]), saved[2], count);
    at::Tensor grad_input;
    if (wants_input) {
      grad_input =
          from_matrix(norm_act_input_gradient(copies, grad, std::nullopt, gradients), grad_outputs[0].sym_sizes());
    }
    return {grad_input, wants_weight ? grad_weight : at::Tensor(), wants_bias ? grad_bias : at::Tensor(), {}, {}, {},
            {}};
  }
};

/// A pass as the op's arguments describe it: a slope of 1 is no activation, and the side is one of the bits.
struct Pass {
  FusedActivation activation;
  NormActPacking packing;
};

Pass pass_of(double negative_slope, int64_t bits, c10::string_view rounding, c10::string_view activation) {
  FusedActivation fused = fused_activation(kBatchNormActName, activation, negative_slope);
  if (fused.function == ActivationFunction::kLeakyReLU && negative_slope == 1.0) {
    fused.function = ActivationFunction::kIdentity;
  }
  TORCH_CHECK_VALUE(bits >= kFewestCopyBits && bits <= kMaxBits, kBatchNormActName, ": bits must be in 2..8, got ",
                    bits);
  return {fused, {.bits = code_bits(fused, bits), .rounding = rounding_of(kBatchNormActName, rounding)}};
}

void check(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
           const BatchNormStatistics& statistics, const OptionalTensor& rng_state) {
  check_batch_norm(kBatchNormActName, input, weight, bias, statistics, SaveOptions({}, {}, rng_state));
}

at::Tensor batch_norm_act_autograd(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                   double momentum, double eps, double negative_slope, int64_t bits,
                                   c10::string_view rounding, const OptionalTensor& rng_state,
                                   c10::string_view activation) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  const Pass pass = pass_of(negative_slope, bits, rounding, activation);
  check(input, weight, bias, statistics, rng_state);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return BatchNormAct::apply(input, weight, bias, statistics, pass.activation, pass.packing, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return without_copies(input, weight, bias, statistics, pass.activation);
}

/// Without autograd (inference mode) nothing is saved.
at::Tensor batch_norm_act_plain(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                double momentum, double eps, double negative_slope, int64_t bits,
                                c10::string_view rounding, const OptionalTensor& rng_state,
                                c10::string_view activation) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  const Pass pass = pass_of(negative_slope, bits, rounding, activation);
  check(input, weight, bias, statistics, rng_state);
  return without_copies(input, weight, bias, statistics, pass.activation);
}

using BatchNormActSignature = at::Tensor(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                         const OptionalTensor&, const OptionalTensor&, bool, double, double, double,
                                         int64_t, c10::string_view, const OptionalTensor&, c10::string_view);

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "batch_norm_act(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "bool training, float momentum, float eps, float negative_slope=0.0, int bits=4, str rounding='dithered', "
      "Tensor(z!)? rng_state=None, str activation='leaky_relu') -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("batch_norm_act", batch_norm_act_plain); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("batch_norm_act", batch_norm_act_autograd); }

at::Tensor batch_norm_act(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                          double momentum, double eps, const FusedActivation& activation, int64_t bits,
                          Rounding rounding, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<BatchNormActSignature>(kBatchNormActName);
  return kHandle.call(input, weight, bias, running_mean, running_var, training, momentum, eps, activation.slope, bits,
                      name_of(rounding), rng_state, name_of(activation.function));
}

}  // namespace actnn
