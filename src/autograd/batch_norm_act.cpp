#include "actnn/autograd/batch_norm_act.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "actnn/core/sign_split.h"
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
                     const BatchNormStatistics& statistics, double slope, const SplitPacking& packing,
                     const OptionalTensor& rng_state) {
  const at::Tensor x = as_matrix(input);
  const ActivationFunction function = packing.derivative.function;
  const bool has_kink =
      function == ActivationFunction::kLeakyReLU ? slope != 1.0 : function == ActivationFunction::kReLU6;
  auto [channels, decode, rstd] =
      statistics.training
          ? batch_norm_channels(x, in_float(weight), in_float(bias), if_defined(statistics.running_mean),
                                if_defined(statistics.running_var), {}, statistics.momentum, statistics.eps, has_kink)
          : norm_act_channels(*in_float(statistics.running_mean), *in_float(statistics.running_var), in_float(weight),
                              in_float(bias), statistics.eps, has_kink);
  auto [y, packed] = norm_act(x, std::nullopt, channels, slope, packing, rng_state);
  return {std::move(y), std::move(packed), std::move(decode), std::move(rstd)};
}

at::Tensor without_copies(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                          const BatchNormStatistics& statistics, double slope, ActivationFunction function) {
  const SplitPacking nothing{.bits = 0, .derivative = {.function = function}};
  const at::Tensor y = normalize(input, weight, bias, statistics, slope, nothing, std::nullopt).y;
  return from_matrix(y, input.sym_sizes());
}

class BatchNormAct : public torch::autograd::Function<BatchNormAct> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& bias, const BatchNormStatistics& statistics, double slope,
                            const SplitPacking& packing, const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Normalized normalized =
        normalize(input, weight, bias, statistics, slope, packing, state_for(rng_state, input));
    ctx->save_for_backward({normalized.packed, normalized.decode, normalized.rstd, weight.value_or(at::Tensor())});
    auto& data = ctx->saved_data;
    save_parameter_presence(ctx, weight.has_value(), bias.has_value());
    data["training"] = statistics.training;
    data["slope"] = slope;
    data["bits"] = packing.bits;
    save_derivative(ctx, packing.derivative);
    at::Tensor output = from_matrix(normalized.y, input.sym_sizes());
    if (gives_output(packing.derivative.function)) {
      share_copy(output, {normalized.packed, normalized.decode, slope, packing.bits, packing.derivative});
    }
    return output;
  }

  // Gradients of weight and bias are float32; autograd casts them.
  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kBatchNormActName);
    auto& data = ctx->saved_data;
    const variable_list saved = ctx->get_saved_variables();
    const auto [wants_input, wants_weight, wants_bias] = wanted_gradients(ctx);
    const NormActCopies copies{.packed = saved[0],
                               .slope = data["slope"].toDouble(),
                               .bits = data["bits"].toInt(),
                               .derivative = saved_derivative(ctx)};

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

void check(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
           const BatchNormStatistics& statistics, const SplitPacking& packing, const OptionalTensor& rng_state) {
  TORCH_CHECK_VALUE(packing.bits >= kMinSplitBits && packing.bits <= kMaxBits, kBatchNormActName,
                    ": bits must be in 2..8, got ", packing.bits);
  check_packed_derivative(kBatchNormActName, packing.derivative, packing.bits);
  const SaveOptions saving({.bits = packing.bits}, {}, rng_state);
  check_batch_norm(kBatchNormActName, input, weight, bias, statistics, saving);
}

/// ReLU6 has one bit of derivatives, whatever is asked for.
SplitPacking packing_of(int64_t bits, bool stochastic, c10::string_view activation, int64_t derivative_bits) {
  PackedDerivative derivative = packed_derivative(kBatchNormActName, activation, derivative_bits);
  if (derivative.function == ActivationFunction::kLeakyReLU) {
    derivative.bits = 0;
  } else if (derivative.function == ActivationFunction::kReLU6) {
    derivative.bits = 1;
  }
  return {.bits = bits, .stochastic = stochastic, .derivative = derivative};
}

at::Tensor batch_norm_act_autograd(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                   double momentum, double eps, double negative_slope, int64_t bits, bool stochastic,
                                   const OptionalTensor& rng_state, c10::string_view activation,
                                   int64_t derivative_bits) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  const SplitPacking packing = packing_of(bits, stochastic, activation, derivative_bits);
  check(input, weight, bias, statistics, packing, rng_state);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return BatchNormAct::apply(input, weight, bias, statistics, negative_slope, packing, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return without_copies(input, weight, bias, statistics, negative_slope, packing.derivative.function);
}

/// Without autograd (inference mode) nothing is saved.
at::Tensor batch_norm_act_plain(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                double momentum, double eps, double negative_slope, int64_t bits, bool stochastic,
                                const OptionalTensor& rng_state, c10::string_view activation, int64_t derivative_bits) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  const SplitPacking packing = packing_of(bits, stochastic, activation, derivative_bits);
  check(input, weight, bias, statistics, packing, rng_state);
  return without_copies(input, weight, bias, statistics, negative_slope, packing.derivative.function);
}

using BatchNormActSignature = at::Tensor(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                         const OptionalTensor&, const OptionalTensor&, bool, double, double, double,
                                         int64_t, bool, const OptionalTensor&, c10::string_view, int64_t);

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "batch_norm_act(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "bool training, float momentum, float eps, float negative_slope=0.0, int bits=4, bool stochastic=True, "
      "Tensor(z!)? rng_state=None, str activation='leaky_relu', int derivative_bits=4) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("batch_norm_act", batch_norm_act_plain); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("batch_norm_act", batch_norm_act_autograd); }

at::Tensor batch_norm_act(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                          double momentum, double eps, double negative_slope, const SplitPacking& packing,
                          const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<BatchNormActSignature>(kBatchNormActName);
  return kHandle.call(input, weight, bias, running_mean, running_var, training, momentum, eps, negative_slope,
                      packing.bits, packing.stochastic, rng_state, name_of(packing.derivative.function),
                      packing.derivative.bits);
}

}  // namespace actnn
