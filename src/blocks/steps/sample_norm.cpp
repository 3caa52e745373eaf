#include "src/blocks/steps/sample_norm.h"

#include <ATen/ops/native_group_norm_backward.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

/// A sum over everything but channels.
at::Tensor sum_over_channels(const at::Tensor& grad) {
  std::vector<int64_t> dimensions{0};
  for (int64_t dimension = 2; dimension < grad.dim(); ++dimension) {
    dimensions.push_back(dimension);
  }
  return grad.sum(dimensions, /*keepdim=*/false, at::kFloat);
}

}  // namespace

void add_sample_norm_gradients(BackwardRun& run, Value output, const NormOperands& norm, int64_t groups) {
  const std::array<bool, 3> wanted = norm.wanted(run);
  if (!wanted[0] && !wanted[1]) {
    run.add(*norm.bias, sum_over_channels(run.take_joined(output)));
    return;
  }
  const Sizes& sizes = run.sizes(output);
  NormGradient gradient = norm_gradient(run, output);
  // Torch's CUDA kernel knows contiguous tensors only. The CPU's for channels_last writes the input's gradient, wanted
  // or not.
  const at::MemoryFormat format =
      gradient.grad.is_cpu() && wanted[0] ? gradient.normalized.suggest_memory_format() : at::MemoryFormat::Contiguous;
  gradient.grad = gradient.grad.contiguous(format);
  gradient.normalized = gradient.normalized.contiguous(format);
  const auto options = gradient.grad.options();
  auto [grad_input, grad_weight, grad_bias] = at::native_group_norm_backward_symint(
      gradient.grad, gradient.normalized, at::zeros_symint({sizes[0], groups}, options),
      at::ones_symint({sizes[0], groups}, options), parameter_like(run, norm.weight, gradient.grad), sizes[0], sizes[1],
      element_count(Sizes(sizes.begin() + 2, sizes.end())), groups, wanted);
  if (wanted[1]) {
    run.add(*norm.weight, std::move(grad_weight));
  }
  if (wanted[2]) {
    run.add(*norm.bias, std::move(grad_bias));
  }
  if (wanted[0]) {
    Sizes per_channel(sizes.size(), 1);
    per_channel[0] = sizes[0];
    per_channel[1] = sizes[1];
    const at::Tensor rstd = run.saved(output, Form::kStatistics)[0].repeat_interleave_symint(sizes[1] / groups, 1);
    run.add(norm.input, grad_input.mul_(rstd.view_symint(per_channel)));
  }
}

}  // namespace actnn::blocks
