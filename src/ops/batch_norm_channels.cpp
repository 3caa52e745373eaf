#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "src/ops/dispatch.h"
#include "src/ops/norm_act_checks.h"

namespace actnn {
namespace {

using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

constexpr const char* kBatchNormChannelsName = "actnn::batch_norm_channels";

/// `running += momentum (value - running)`, momentum none: 1 / count.
void update(const OptionalTensor& running, const at::Tensor& value, std::optional<double> momentum,
            const OptionalTensor& count) {
  if (!running) {
    return;
  }
  const at::Tensor batch = value.to(running->scalar_type());
  if (momentum) {
    running->lerp_(batch, *momentum);
  } else {
    running->lerp_(batch, count->to(running->scalar_type()).reciprocal());
  }
}

}  // namespace

ThreeTensors composed_batch_norm_channels(const at::Tensor& input, const OptionalTensor& weight,
                                          const OptionalTensor& bias, const OptionalTensor& running_mean,
                                          const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked,
                                          std::optional<double> momentum, double eps, bool has_kink) {
  check_batch_norm_channels(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum);
  const auto [mean, variance] = channel_moments(input);
  if (num_batches_tracked) {
    num_batches_tracked->add_(1);
  }
  update(running_mean, mean, momentum, num_batches_tracked);
  const c10::SymFloat rows(input.sym_size(0));
  update(running_var, variance * at::Scalar(rows / (rows - 1.0)), momentum, num_batches_tracked);
  return norm_act_channels(mean, variance, weight, bias, eps, has_kink);
}

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "batch_norm_channels(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum, float eps, bool has_kink) -> "
      "(Tensor channels, Tensor decode, Tensor rstd)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("batch_norm_channels", composed_batch_norm_channels); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("batch_norm_channels", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  m.impl("batch_norm_channels", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

ThreeTensors batch_norm_channels(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                 const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                 const OptionalTensor& num_batches_tracked, std::optional<double> momentum, double eps,
                                 bool has_kink) {
  static const auto kHandle =
      find_op<ThreeTensors(const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, std::optional<double>, double, bool)>(
          kBatchNormChannelsName);
  return kHandle.call(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, has_kink);
}

}  // namespace actnn
