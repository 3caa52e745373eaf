#include "actnn/autograd/batch_norm_act.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "actnn/core/sign_split.h"
#include "src/autograd/batch_norm_arguments.h"
#include "src/autograd/channel_matrix.h"
#include "src/autograd/normalization.h"
#include "src/autograd/saved_activation.h"
#include "src/autograd/shared_copy.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "actnn::batch_norm_act";

/// `tensor` itself if it has the dtype: an op below autograd must not return its argument.
at::Tensor with_dtype(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

OptionalTensor if_defined(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? tensor : std::nullopt;
}

OptionalTensor in_float(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? std::optional(with_dtype(*tensor, at::kFloat).contiguous())
                                                 : std::nullopt;
}

/// What one forward found out.
struct Normalized {
  at::Tensor y;  ///< matrix
  at::Tensor packed;
  at::Tensor inverse;
  at::Tensor inverse_deviation;
};

Normalized normalize(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                     const BatchNormStatistics& statistics, double slope, const SplitPacking& packing,
                     const OptionalTensor& rng_state) {
  const at::Tensor x = as_matrix(input);
  const bool has_bend = slope != 1.0;
  auto [channels, inverse, inverse_deviation] =
      statistics.training
          ? batch_norm_channels(x, in_float(weight), in_float(bias), if_defined(statistics.running_mean),
                                if_defined(statistics.running_var), {}, statistics.momentum, statistics.eps, has_bend)
          : norm_act_channels(*in_float(statistics.running_mean), *in_float(statistics.running_var), in_float(weight),
                              in_float(bias), statistics.eps, has_bend);
  auto [y, packed] = norm_act(x, std::nullopt, channels, slope, packing, rng_state);
  return {std::move(y), std::move(packed), std::move(inverse), std::move(inverse_deviation)};
}

at::Tensor without_copies(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                          const BatchNormStatistics& statistics, double slope) {
  const at::Tensor y = normalize(input, weight, bias, statistics, slope, {.bits = 0}, std::nullopt).y;
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
    ctx->save_for_backward(
        {normalized.packed, normalized.inverse, normalized.inverse_deviation, weight.value_or(at::Tensor())});
    auto& data = ctx->saved_data;
    remember_parameters(ctx, weight.has_value(), bias.has_value());
    data["training"] = statistics.training;
    data["slope"] = slope;
    data["bits"] = packing.bits;
    at::Tensor output = from_matrix(normalized.y, input.sym_sizes());
    share_copy(output, {normalized.packed, normalized.inverse, slope, packing.bits});
    return output;
  }

  // Gradients of weight and bias are float32; autograd casts them.
  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kOp);
    auto& data = ctx->saved_data;
    const variable_list saved = ctx->get_saved_variables();
    const auto [wants_input, wants_weight, wants_bias] = wanted_gradients(ctx);
    const NormActCopies copies{saved[0], data["slope"].toDouble(), data["bits"].toInt()};

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
  TORCH_CHECK_VALUE(packing.bits >= kMinSplitBits && packing.bits <= kMaxBits, kOp, ": bits must be in 2..8, got ",
                    packing.bits);
  const Keeping keeping({.bits = packing.bits}, {}, rng_state);
  check_batch_norm(kOp, input, weight, bias, statistics, keeping);
}

at::Tensor batch_norm_act_autograd(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                   double momentum, double eps, double negative_slope, int64_t bits, bool stochastic,
                                   const OptionalTensor& rng_state) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  const SplitPacking packing{.bits = bits, .stochastic = stochastic};
  check(input, weight, bias, statistics, packing, rng_state);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return BatchNormAct::apply(input, weight, bias, statistics, negative_slope, packing, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return without_copies(input, weight, bias, statistics, negative_slope);
}

/// Without autograd (inference mode) nothing is saved.
at::Tensor batch_norm_act_plain(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                double momentum, double eps, double negative_slope, int64_t bits, bool stochastic,
                                const OptionalTensor& rng_state) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  check(input, weight, bias, statistics, {.bits = bits, .stochastic = stochastic}, rng_state);
  return without_copies(input, weight, bias, statistics, negative_slope);
}

using Signature = at::Tensor(const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                             const OptionalTensor&, bool, double, double, double, int64_t, bool, const OptionalTensor&);

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "batch_norm_act(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "bool training, float momentum, float eps, float negative_slope=0.0, int bits=4, bool stochastic=True, "
      "Tensor(z!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("batch_norm_act", batch_norm_act_plain); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("batch_norm_act", batch_norm_act_autograd); }

at::Tensor batch_norm_act(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                          double momentum, double eps, double negative_slope, const SplitPacking& packing,
                          const OptionalTensor& rng_state) {
  static const auto kHandle = c10::Dispatcher::singleton().findSchemaOrThrow(kOp, "").typed<Signature>();
  return kHandle.call(input, weight, bias, running_mean, running_var, training, momentum, eps, negative_slope,
                      packing.bits, packing.stochastic, rng_state);
}

}  // namespace actnn
