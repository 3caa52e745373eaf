#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "actnn/autograd/batch_norm.h"
#include "actnn/autograd/normalization.h"
#include "src/autograd/arguments.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/rounding_names.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr const char* kInstanceNormName = "actnn::instance_norm";

/// A tensor per channel as one per instance; differentiable: the gradient of the tensor is the sum over the batch.
OptionalTensor per_instance(const OptionalTensor& tensor, const c10::SymInt& batch) {
  return tensor.has_value() && tensor->defined() ? OptionalTensor(tensor->repeat_symint({batch})) : std::nullopt;
}

/// Torch computes with running statistics of the weight's type, without a weight of the input's.
OptionalTensor statistics(const OptionalTensor& running, const at::Tensor& input, const OptionalTensor& weight) {
  const at::Tensor& model = weight.has_value() && weight->defined() ? *weight : input;
  const OptionalTensor instances = per_instance(running, input.sym_size(0));
  return instances.has_value() ? OptionalTensor(instances->to(model.scalar_type())) : instances;
}

/// Torch's running statistics are the mean of the instances'.
void update(const OptionalTensor& running, const OptionalTensor& instances, const c10::SymInt& batch) {
  if (instances.has_value()) {
    running->copy_(instances->view_symint({batch, running->sym_size(0)}).mean(0));
  }
}

/// Composed of differentiable ops, for every dispatch key.
at::Tensor instance_norm_kernel(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                bool use_input_stats, double momentum, double eps, int64_t bits, int64_t group_size,
                                c10::string_view rounding, const OptionalTensor& rng_state) {
  check_floating(kInstanceNormName, "input", input);
  TORCH_CHECK_VALUE(input.dim() >= 3, kInstanceNormName,
                    ": input must have shape [N, C, ...] of rank 3 or more, got shape ", input.sym_sizes());
  const c10::SymInt batch = input.sym_size(0);
  const c10::SymInt channels = input.sym_size(1);
  check_parameter(kInstanceNormName, "weight", weight, "[C]", {channels}, input);
  check_parameter(kInstanceNormName, "bias", bias, "[C]", {channels}, input);
  check_parameter(kInstanceNormName, "running_mean", running_mean, "[C]", {channels}, input);
  check_parameter(kInstanceNormName, "running_var", running_var, "[C]", {channels}, input);
  TORCH_CHECK_VALUE(use_input_stats || (running_mean.has_value() && running_var.has_value()), kInstanceNormName,
                    ": running_mean and running_var must be given if use_input_stats is false, got none");
  const Quantization quantization = check_quantization(kInstanceNormName, input, bits, group_size, rounding, rng_state);
  std::vector<c10::SymInt> size = input.sym_sizes().vec();
  size[0] = 1;
  size[1] = batch * channels;
  const OptionalTensor mean = statistics(running_mean, input, weight);
  const OptionalTensor var = statistics(running_var, input, weight);
  const at::Tensor output =
      actnn::batch_norm(input.contiguous().view_symint(size), per_instance(weight, batch), per_instance(bias, batch),
                        mean, var, use_input_stats, momentum, eps, quantization, rng_state);
  if (use_input_stats) {
    update(running_mean, mean, batch);
    update(running_var, var, batch);
  }
  return output.view_symint(input.sym_sizes());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "bool use_input_stats, float momentum, float eps, int bits=4, int group_size=256, str rounding='dithered', "
      "Tensor(c!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeImplicitAutograd, m) { m.impl("instance_norm", instance_norm_kernel); }

at::Tensor instance_norm(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& running_mean, const OptionalTensor& running_var, bool use_input_stats,
                         double momentum, double eps, const Quantization& quantization,
                         const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<decltype(instance_norm_kernel)>(kInstanceNormName);
  return kHandle.call(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, quantization.bits,
                      quantization.group_size, name_of(quantization.rounding), rng_state);
}

}  // namespace actnn
