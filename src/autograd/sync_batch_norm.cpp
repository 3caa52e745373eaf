#include "actnn/autograd/sync_batch_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/batch_norm_backward_elemt.h>
#include <ATen/ops/batch_norm_backward_reduce.h>
#include <ATen/ops/batch_norm_update_stats.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/var_mean.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "actnn/autograd/batch_norm.h"
#include "src/autograd/batch_norm_arguments.h"
#include "src/autograd/normalization.h"
#include "src/autograd/save_options.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/dispatch.h"
#include "src/ops/distributed_moments.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kSyncBatchNormName = "actnn::sync_batch_norm";

// --- Forward ---------------------------------------------------------------------------------------------------------

/// The elements of a channel in this rank's batch.
c10::SymInt local_count(const at::Tensor& input) {
  c10::SymInt count = 1;
  for (int64_t dimension = 0; dimension < input.dim(); ++dimension) {
    if (dimension != 1) {
      count *= input.sym_size(dimension);
    }
  }
  return count;
}

std::vector<int64_t> all_but_channels(const at::Tensor& input) {
  std::vector<int64_t> dimensions{0};
  for (int64_t dimension = 2; dimension < input.dim(); ++dimension) {
    dimensions.push_back(dimension);
  }
  return dimensions;
}

/// Mean and biased variance of this rank's batch, float32 [C] each; of an empty one zeros.
std::tuple<at::Tensor, at::Tensor> local_moments(const at::Tensor& input) {
  const auto zeros = [&] {
    return at::zeros_symint({input.sym_size(1)}, input.options().dtype(at::kFloat).memory_format(std::nullopt));
  };
  if (input.sym_numel() == 0) {
    return {zeros(), zeros()};
  }
  if (is_traced(input)) {  // the op below has no Meta kernel; a compiler makes a loop of its own of this
    auto [var, mean] = at::var_mean(input.to(at::kFloat), all_but_channels(input), /*unbiased=*/false);
    return {std::move(mean), std::move(var)};
  }
  // On the CPU, the running statistics, here dummies, make those of a 16-bit input float32.
  return at::batch_norm_update_stats(input, zeros(), zeros(), /*momentum=*/0);
}

Moments joint_moments(const at::Tensor& input, const std::string& group_name) {
  const auto [mean, var] = local_moments(input);
  return distributed_moments(kSyncBatchNormName, mean, var, local_count(input), group_name);
}

OptionalTensor to_float(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? std::optional(tensor->to(at::kFloat)) : std::nullopt;
}

/// (input - mean) / sqrt(var + eps) * weight + bias, in one pass, for any memory format; all but the input are float32.
at::Tensor normalize(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                     const at::Tensor& mean, const at::Tensor& var, double eps) {
  return std::get<0>(
      at::native_batch_norm(input, weight, bias, mean, var, /*training=*/false, /*momentum=*/0, /*eps=*/eps));
}

at::Tensor normalize_distributed(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                 const BatchNormStatistics& statistics, const Moments& moments) {
  update_running(statistics.running_mean, statistics.running_var, moments, statistics.momentum);
  if (input.sym_numel() == 0) {
    return at::empty_like(input);
  }
  return normalize(input, to_float(weight), to_float(bias), moments.mean, moments.var, statistics.eps);
}

// --- Backward --------------------------------------------------------------------------------------------------------

at::Tensor inverse_deviation(const at::Tensor& var, double eps) { return (var + eps).rsqrt_(); }

/// Forward's input with the statistics of all ranks, or x-hat with its own.
struct DistributedNormalized {
  at::Tensor input;
  at::Tensor mean;
  at::Tensor var;
  double eps;
  at::Tensor rstd;
  OptionalTensor weight;  ///< float32; none is 1

  /// Torch has kernels for exactly this on CUDA; they read contiguous tensors, and have no Meta kernels.
  bool has_own_kernels() const { return input.is_cuda() && !is_traced(input); }
};

/// Sums over this rank's batch of grad and of grad times the normalized input: float32 [2 C].
at::Tensor local_sums(const at::Tensor& grad, const DistributedNormalized& x) {
  if (x.input.sym_numel() == 0) {
    return at::zeros_symint({2 * x.mean.sym_size(0)}, x.mean.options());
  }
  if (x.has_own_kernels()) {
    const auto [sum, sum_centered, no_weight, no_bias] =
        at::batch_norm_backward_reduce(grad, x.input, x.mean, x.rstd, {}, /*input_g=*/true,
                                       /*weight_g=*/false, /*bias_g=*/false);
    return at::cat({sum, sum_centered * x.rstd});
  }
  // They are the gradients of weight and bias; the weight, here any tensor, says that they are wanted in float32.
  // CUDA's kernel reads the saved statistics in evaluation mode too, the CPU's the running ones.
  const auto [no_input, sum_normalized, sum] =
      at::native_batch_norm_backward(grad, x.input, /*weight=*/x.var, x.mean, x.var, x.mean, x.rstd,
                                     /*train=*/false, x.eps, {false, true, true});
  return at::cat({sum, sum_normalized});
}

/// weight / deviation * (grad - E[grad] - x-hat * E[grad x-hat]), with the expectations over all ranks' batches.
at::Tensor input_gradient(const at::Tensor& grad, const DistributedNormalized& x, const at::Tensor& expectation,
                          const at::Tensor& expectation_normalized) {
  if (x.input.sym_numel() == 0) {
    return at::empty_like(x.input);
  }
  if (x.has_own_kernels()) {
    // It takes sums and counts; expectations and 1 are a special case.
    return at::batch_norm_backward_elemt(grad, x.input, x.mean, x.rstd, x.weight, expectation,
                                         expectation_normalized / x.rstd,
                                         at::ones({1}, x.mean.options().dtype(at::kInt)));
  }
  const at::Tensor scale = x.weight.has_value() ? x.rstd * *x.weight : x.rstd;
  const at::Tensor negative = scale.neg();
  // In float32: the terms cancel.
  at::Tensor result = normalize(x.input.to(at::kFloat), negative * expectation_normalized, negative * expectation,
                                x.mean, x.var, x.eps);
  std::vector<c10::SymInt> per_channel(static_cast<size_t>(grad.dim()), 1);
  per_channel[1] = grad.sym_size(1);
  return result.addcmul_(grad.to(at::kFloat), scale.view_symint(per_channel)).to(x.input.scalar_type());
}

class SyncBatchNorm : public torch::autograd::Function<SyncBatchNorm> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& bias, const BatchNormStatistics& statistics,
                            const std::string& group_name, const SaveOptions& saving) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Moments moments = joint_moments(input, group_name);
    const at::Tensor output = normalize_distributed(input, weight, bias, statistics, moments);
    auto& data = ctx->saved_data;
    save_parameter_presence(ctx, weight.has_value(), bias.has_value());
    data["group_name"] = group_name;
    if (!wants_grad(weight) && !wants_grad(input)) {
      return output;
    }
    const at::Tensor own_weight = weight.value_or(at::Tensor());
    const bool keeps_normalized = !keeps_input(input, saving);
    data["keeps_normalized"] = keeps_normalized;
    if (keeps_normalized) {
      const at::Tensor rstd = inverse_deviation(moments.var, statistics.eps);
      const at::Tensor normalized = normalized_value(own_weight, bias.value_or(at::Tensor()), output,
                                                     [&] { return normalized_by_channel(input, moments.mean, rstd); });
      const SavedActivation saved = save_activation(ctx, normalized, saving);
      ctx->save_for_backward({own_weight, moments.count, saved.data, saved.parameters, rstd});
    } else {
      const SavedActivation saved = save_activation(ctx, input, saving);
      ctx->save_for_backward({own_weight, moments.count, saved.data, saved.parameters, moments.mean, moments.var});
      data["eps"] = statistics.eps;
    }
    return output;
  }

  // Gradients of weight and bias are float32; autograd casts them.
  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kSyncBatchNormName);
    auto& data = ctx->saved_data;
    const auto [wants_input, wants_weight, wants_bias] = wanted_gradients(ctx);
    at::Tensor grad = grad_outputs[0];
    if (!wants_input && !wants_weight) {
      return {{}, {}, wants_bias ? grad.sum(all_but_channels(grad), false, at::kFloat) : at::Tensor(), {}, {}, {}};
    }
    const variable_list saved = ctx->get_saved_variables();
    DistributedNormalized x = saved_normalized(ctx, saved);
    if (x.has_own_kernels()) {
      const at::MemoryFormat format = x.input.suggest_memory_format();
      x.input = x.input.contiguous(format);
      grad = grad.contiguous(format);
    }
    const at::Tensor sums = local_sums(grad, x);
    at::Tensor grad_input;
    if (wants_input) {
      const auto expectations =
          distributed_sum(kSyncBatchNormName, sums, data["group_name"].toStringRef()).div_(saved[1]).chunk(2);
      grad_input = input_gradient(grad, x, expectations[0], expectations[1]);
    }
    const auto local = sums.chunk(2);
    return {grad_input, wants_weight ? local[1] : at::Tensor(), wants_bias ? local[0] : at::Tensor(), {}, {}, {}};
  }

 private:
  static DistributedNormalized saved_normalized(AutogradContext* ctx, const variable_list& saved) {
    auto& data = ctx->saved_data;
    const at::Tensor value = saved_activation(ctx, {saved[2], saved[3]});
    if (data["keeps_normalized"].toBool()) {
      const auto [zero, one, weight] = unit_statistics(saved[4], saved[0]);
      return {.input = value, .mean = zero, .var = one, .eps = 0, .rstd = one, .weight = weight};
    }
    const double eps = data["eps"].toDouble();
    return {.input = value,
            .mean = saved[4],
            .var = saved[5],
            .eps = eps,
            .rstd = inverse_deviation(saved[5], eps),
            .weight = to_float(saved[0])};
  }
};

// --- The op ----------------------------------------------------------------------------------------------------------

/// Batch norm, with what was given for this op.
at::Tensor in_evaluation_mode(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                              const BatchNormStatistics& statistics, const SaveOptions& saving) {
  return batch_norm(input, weight, bias, statistics.running_mean, statistics.running_var, /*training=*/false,
                    statistics.momentum, statistics.eps, saving.quantization, saving.rng_state, saving.retention);
}

at::Tensor in_training_mode(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                            const BatchNormStatistics& statistics, const std::string& group_name) {
  return normalize_distributed(input, weight, bias, statistics, joint_moments(input, group_name));
}

template <class... Arguments>
at::Tensor sync_batch_norm_autograd(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                    bool training, double momentum, double eps, c10::string_view group_name,
                                    Arguments... arguments) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  const SaveOptions saving{kSyncBatchNormName, arguments...};
  check_batch_norm(kSyncBatchNormName, input, weight, bias, statistics, saving);
  if (!training) {
    return in_evaluation_mode(input, weight, bias, statistics, saving);
  }
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return SyncBatchNorm::apply(input, weight, bias, statistics, std::string(group_name), saving);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return in_training_mode(input, weight, bias, statistics, std::string(group_name));
}

/// Without autograd (inference mode) nothing is saved.
template <class... Arguments>
at::Tensor sync_batch_norm_plain(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                 const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                 double momentum, double eps, c10::string_view group_name, Arguments... arguments) {
  const BatchNormStatistics statistics{running_mean, running_var, training, momentum, eps};
  const SaveOptions saving{kSyncBatchNormName, arguments...};
  check_batch_norm(kSyncBatchNormName, input, weight, bias, statistics, saving);
  return training ? in_training_mode(input, weight, bias, statistics, std::string(group_name))
                  : in_evaluation_mode(input, weight, bias, statistics, saving);
}

using SyncBatchNormSignature =
    SaveSignature<const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                  const OptionalTensor&, bool, double, double, c10::string_view>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(("sync_batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
         "Tensor(b!)? running_var, bool training, float momentum, float eps, str group_name, " +
         kSaveSchema + ") -> Tensor")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("sync_batch_norm", static_cast<SyncBatchNormSignature*>(sync_batch_norm_plain));
}
TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("sync_batch_norm", static_cast<SyncBatchNormSignature*>(sync_batch_norm_autograd));
}

at::Tensor sync_batch_norm(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                           double momentum, double eps, const std::string& group_name, const Quantization& quantization,
                           const OptionalTensor& rng_state, const Retention& retention) {
  static const auto kHandle = find_op<SyncBatchNormSignature>(kSyncBatchNormName);
  return call_saving(kHandle, quantization, retention, rng_state, input, weight, bias, running_mean, running_var,
                     training, momentum, eps, c10::string_view(group_name));
}

}  // namespace actnn
