#include "actnn/autograd/batch_norm.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_batch_norm_impl_index.h>
#include <ATen/ops/_batch_norm_impl_index_backward.h>
#include <ATen/ops/cudnn_batch_norm_backward.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <utility>

#include "src/autograd/batch_norm_arguments.h"
#include "src/autograd/normalization.h"
#include "src/autograd/save_options.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/dispatch.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kBatchNormName = "actnn::batch_norm";

/// What `at::batch_norm` calls: (output, saved mean, saved rstd, reserve, implementation).
auto exact_batch_norm(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                      const BatchNormStatistics& statistics) {
  return at::_batch_norm_impl_index(input, weight, bias, statistics.running_mean, statistics.running_var,
                                    statistics.training, statistics.momentum, statistics.eps,
                                    at::globalContext().userEnabledCuDNN());
}

/// The number that `_batch_norm_impl_index` gives cuDNN's implementation; 0 is torch's own.
constexpr int64_t kCudnn = 1;

/// What torch's backward takes besides the input: of the input, or of x-hat in its place.
struct BackwardOperands {
  at::Tensor weight{};
  at::Tensor running_mean{};  ///< read in evaluation mode
  at::Tensor running_var{};
  at::Tensor mean{};
  at::Tensor rstd{};
  at::Tensor reserve{};
  double eps = 0;
  int64_t implementation = 0;
};

/// `_batch_norm_impl_index_backward`, which does not take symbolic sizes: what it calls, called directly.
auto exact_batch_norm_backward(const at::Tensor& grad, const at::Tensor& input, const BackwardOperands& operands,
                               bool training, std::array<bool, 3> wanted) {
  const auto& [weight, running_mean, running_var, mean, rstd, reserve, eps, implementation] = operands;
  // cuDNN has no backward for evaluation mode.
  if (input.sym_numel() != 0 && (implementation == 0 || !training)) {
    return at::native_batch_norm_backward(grad, input, weight, running_mean, running_var, mean, rstd, training, eps,
                                          wanted);
  }
  if (input.sym_numel() != 0 && implementation == kCudnn) {
    return at::cudnn_batch_norm_backward(input, grad.contiguous(input.suggest_memory_format()), weight, running_mean,
                                         running_var, mean, rstd, eps, reserve);
  }
  return at::_batch_norm_impl_index_backward(implementation, input, grad, weight, running_mean, running_var, mean, rstd,
                                             training, eps, wanted, reserve);
}

/// What `exact_batch_norm` has normalized by, float32 [C].
struct Normalizer {
  at::Tensor mean;
  at::Tensor rstd;
};

Normalizer normalizer_of(const BatchNormStatistics& statistics, const at::Tensor& mean, const at::Tensor& rstd) {
  if (statistics.training) {
    return {with_dtype(mean, at::kFloat), with_dtype(rstd, at::kFloat)};
  }
  return {with_dtype(*statistics.running_mean, at::kFloat),
          (with_dtype(*statistics.running_var, at::kFloat) + statistics.eps).rsqrt_()};
}

class BatchNorm : public torch::autograd::Function<BatchNorm> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& bias, const BatchNormStatistics& statistics,
                            const SaveOptions& saving) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, mean, rstd, reserve, implementation] = exact_batch_norm(input, weight, bias, statistics);
    auto& data = ctx->saved_data;
    save_parameter_presence(ctx, weight.has_value(), bias.has_value());
    data["training"] = statistics.training;
    // In evaluation mode the input's gradient is a scaled copy of the output's.
    const bool needs_values = wants_grad(weight) || (statistics.training && wants_grad(input));
    const bool keeps_normalized = needs_values && !keeps_input(input, saving);
    data["keeps_normalized"] = keeps_normalized;
    const at::Tensor own_weight = weight.value_or(at::Tensor());
    SavedActivation saved;
    at::Tensor normalizer_rstd;
    if (keeps_normalized) {
      const Normalizer normalizer = normalizer_of(statistics, mean, rstd);
      const at::Tensor normalized = normalized_value(own_weight, bias.value_or(at::Tensor()), output, [&] {
        return normalized_by_channel(input, normalizer.mean, normalizer.rstd);
      });
      saved = save_activation(ctx, normalized, saving);
      normalizer_rstd = normalizer.rstd;
    } else if (needs_values) {
      saved = save_activation(ctx, input, saving);
    } else {
      save_layout(ctx, input);
    }
    variable_list kept{own_weight, saved.data, saved.parameters, normalizer_rstd};
    if (!keeps_normalized || !statistics.training) {
      // Running statistics change with the next forward; backward reads them in evaluation mode only.
      const bool uses_running = !statistics.training;
      kept.insert(kept.end(),
                  {uses_running ? statistics.running_mean.value_or(at::Tensor()) : at::Tensor(),
                   uses_running ? statistics.running_var.value_or(at::Tensor()) : at::Tensor(), mean, rstd, reserve});
      data["eps"] = statistics.eps;
      data["implementation"] = implementation;
    }
    ctx->save_for_backward(std::move(kept));
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kBatchNormName);
    auto& data = ctx->saved_data;
    const variable_list saved = ctx->get_saved_variables();
    const bool training = data["training"].toBool();
    const auto [wants_input, wants_weight, wants_bias] = wanted_gradients(ctx);
    const at::Tensor input = wants_weight || (training && wants_input) ? saved_activation(ctx, {saved[1], saved[2]})
                                                                       : activation_like(ctx, grad_outputs[0]);
    const bool keeps_normalized = data["keeps_normalized"].toBool();
    // In evaluation mode the input's gradient does not read the values, and is torch's to the bit.
    const bool apart = keeps_normalized && !training && wants_input;
    auto grads = exact_batch_norm_backward(
        grad_outputs[0], input, keeps_normalized ? operands_of_normalized(saved) : operands_of_input(data, saved),
        training, {wants_input && !apart, wants_weight, wants_bias});
    if (apart) {
      std::get<0>(grads) = std::get<0>(exact_batch_norm_backward(grad_outputs[0], input, operands_of_input(data, saved),
                                                                 training, {true, false, false}));
    }
    // cuDNN computes them all.
    return {std::get<0>(grads),
            wants_weight ? std::get<1>(grads) : at::Tensor(),
            wants_bias ? std::get<2>(grads) : at::Tensor(),
            {},
            {}};
  }

 private:
  /// Torch's own kernel: cuDNN's reserve is of the input and its statistics.
  static BackwardOperands operands_of_normalized(const variable_list& saved) {
    const auto [zero, one, weight] = unit_statistics(saved[3], saved[0]);
    return {.weight = weight, .running_mean = zero, .running_var = one, .mean = zero, .rstd = one};
  }

  template <class Data>
  static BackwardOperands operands_of_input(const Data& data, const variable_list& saved) {
    return {.weight = saved[0],
            .running_mean = saved[4],
            .running_var = saved[5],
            .mean = saved[6],
            .rstd = saved[7],
            .reserve = saved[8],
            .eps = data.at("eps").toDouble(),
            .implementation = data.at("implementation").toInt()};
  }
};

template <class... Arguments>
at::Tensor batch_norm_autograd(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                               double momentum, double eps, Arguments... arguments) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  const SaveOptions saving{kBatchNormName, arguments...};
  check_batch_norm(kBatchNormName, input, weight, bias, statistics, saving);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return BatchNorm::apply(input, weight, bias, statistics, saving);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return std::get<0>(exact_batch_norm(input, weight, bias, statistics));
}

/// Without autograd (inference mode) nothing is saved.
template <class... Arguments>
at::Tensor batch_norm_plain(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                            double momentum, double eps, Arguments... arguments) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  check_batch_norm(kBatchNormName, input, weight, bias, statistics, SaveOptions{kBatchNormName, arguments...});
  return std::get<0>(exact_batch_norm(input, weight, bias, statistics));
}

using BatchNormSignature = SaveSignature<const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                         const OptionalTensor&, const OptionalTensor&, bool, double, double>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(("batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
         "bool training, float momentum, float eps, " +
         kSaveSchema + ") -> Tensor")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("batch_norm", static_cast<BatchNormSignature*>(batch_norm_plain));
}
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("batch_norm", static_cast<BatchNormSignature*>(batch_norm_autograd)); }

at::Tensor batch_norm(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                      double momentum, double eps, const Quantization& quantization, const OptionalTensor& rng_state,
                      const Retention& retention) {
  static const auto kHandle = find_op<BatchNormSignature>(kBatchNormName);
  return call_saving(kHandle, quantization, retention, rng_state, input, weight, bias, running_mean, running_var,
                     training, momentum, eps);
}

}  // namespace actnn
