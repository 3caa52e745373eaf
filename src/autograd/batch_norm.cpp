#include "actnn/autograd/batch_norm.h"

#include <ATen/Context.h>
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

#include "src/autograd/batch_norm_arguments.h"
#include "src/autograd/normalization.h"
#include "src/autograd/save_options.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/dispatch.h"

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

/// `_batch_norm_impl_index_backward`, which does not take symbolic sizes: what it calls, called directly.
auto exact_batch_norm_backward(int64_t implementation, const at::Tensor& grad, const at::Tensor& input,
                               const variable_list& saved, bool training, double eps, std::array<bool, 3> wanted) {
  const auto& [weight, running_mean, running_var, mean, rstd, reserve] =
      std::tie(saved[0], saved[1], saved[2], saved[3], saved[4], saved[5]);
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

class BatchNorm : public torch::autograd::Function<BatchNorm> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& bias, const BatchNormStatistics& statistics,
                            const SaveOptions& saving) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, mean, rstd, reserve, implementation] = exact_batch_norm(input, weight, bias, statistics);
    // In evaluation mode the input's gradient is a scaled copy of the output's.
    SavedActivation saved;
    if (wants_grad(weight) || (statistics.training && wants_grad(input))) {
      saved = save_activation(ctx, input, saving);
    } else {
      save_layout(ctx, input);
    }
    // Running statistics change with the next forward; backward reads them in evaluation mode only.
    const bool uses_running = !statistics.training;
    ctx->save_for_backward({weight.value_or(at::Tensor()),
                            uses_running ? statistics.running_mean.value_or(at::Tensor()) : at::Tensor(),
                            uses_running ? statistics.running_var.value_or(at::Tensor()) : at::Tensor(), mean, rstd,
                            reserve, saved.data, saved.parameters});
    save_parameter_presence(ctx, weight.has_value(), bias.has_value());
    ctx->saved_data["training"] = statistics.training;
    ctx->saved_data["eps"] = statistics.eps;
    ctx->saved_data["implementation"] = implementation;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kBatchNormName);
    auto& data = ctx->saved_data;
    const variable_list saved = ctx->get_saved_variables();
    const bool training = data["training"].toBool();
    const auto [wants_input, wants_weight, wants_bias] = wanted_gradients(ctx);
    const at::Tensor input = wants_weight || (training && wants_input) ? saved_activation(ctx, {saved[6], saved[7]})
                                                                       : activation_like(ctx, grad_outputs[0]);
    auto grads = exact_batch_norm_backward(data["implementation"].toInt(), grad_outputs[0], input, saved, training,
                                           data["eps"].toDouble(), {wants_input, wants_weight, wants_bias});
    // cuDNN computes them all.
    return {std::get<0>(grads),
            wants_weight ? std::get<1>(grads) : at::Tensor(),
            wants_bias ? std::get<2>(grads) : at::Tensor(),
            {},
            {}};
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
