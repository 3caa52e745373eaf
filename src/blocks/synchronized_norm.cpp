#include "src/blocks/synchronized_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "actnn/ops/norm_act.h"
#include "src/ops/distributed_moments.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

constexpr const char* kSynchronizedNormName = "block";

std::tuple<at::Tensor, at::Tensor> local_moments(const at::Tensor& x) {
  if (x.sym_size(0) == 0) {
    const at::Tensor zeros = at::zeros_symint({x.sym_size(1)}, x.options().dtype(at::kFloat));
    return {zeros, zeros};
  }
  return channel_moments(x);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> synchronized_channels(const BatchNorm& norm, ForwardRun& run,
                                                                     const at::Tensor& x, bool has_kink,
                                                                     at::Tensor& rows) {
  const auto [mean, var] = local_moments(x);
  const Moments moments = distributed_moments(kSynchronizedNormName, mean, var, x.sym_size(0), *norm.group_name);
  const std::optional<at::Tensor> num_batches_tracked = run.buffer(norm.num_batches_tracked);
  if (num_batches_tracked) {
    num_batches_tracked->add_(1);
  }
  update_running(run.buffer(norm.running_mean), run.buffer(norm.running_var), moments, norm.momentum,
                 num_batches_tracked);
  rows = moments.count;
  return norm_act_channels(moments.mean, moments.var, in_float(run.Operands::parameter(norm.weight)),
                           in_float(run.Operands::parameter(norm.bias)), norm.eps, has_kink);
}

/// What is summed are the gradients of weight and bias, as by `sync_batch_norm`: they do not depend on how a rank keeps
/// its copies, s.
at::Tensor synchronized_gradients(const BatchNorm& norm, const at::Tensor& decode, const at::Tensor& rstd,
                                  const at::Tensor& rows, const std::optional<at::Tensor>& weight,
                                  const at::Tensor& grad_weight, const at::Tensor& grad_bias) {
  const at::Tensor sums = distributed_sum(kSynchronizedNormName, at::cat({grad_bias, grad_weight}), *norm.group_name);
  const auto expectations = sums.div_(rows).chunk(2);
  // E[dz x-hat] as E[dz s]: x-hat = p s + q.
  const at::Tensor p = decode.select(1, 0);
  const at::Tensor q = decode.select(1, 1);
  const at::Tensor of_copies = (expectations[1] - q * expectations[0]) / p;
  return std::get<0>(norm_act_gradients(at::stack({expectations[0], of_copies}), decode, weight, rstd,
                                        /*count=*/1));
}

}  // namespace actnn::blocks
