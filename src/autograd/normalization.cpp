#include "src/autograd/normalization.h"

#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros_like.h>

#include <tuple>
#include <vector>

#include "src/ops/tensors.h"

namespace actnn {

void save_parameter_presence(torch::autograd::AutogradContext* ctx, bool has_weight, bool has_bias) {
  ctx->saved_data["has_weight"] = has_weight;
  ctx->saved_data["has_bias"] = has_bias;
}

std::array<bool, 3> wanted_gradients(torch::autograd::AutogradContext* ctx) {
  const bool has_weight = ctx->saved_data["has_weight"].toBool();
  const bool has_bias = ctx->saved_data["has_bias"].toBool();
  // Only the tensors that are there have an index.
  return {ctx->needs_input_grad(0), has_weight && ctx->needs_input_grad(1),
          has_bias && ctx->needs_input_grad(has_weight ? 2 : 1)};
}

bool wants_gradients(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                     const std::optional<at::Tensor>& bias) {
  return wants_grad(input) || wants_grad(weight) || wants_grad(bias);
}

at::Tensor normalized_by(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& rstd) {
  const at::Tensor centered = input.sub(with_dtype(mean, at::kFloat));
  return with_dtype(centered.mul_(with_dtype(rstd, at::kFloat)), input.scalar_type());
}

at::Tensor normalized_by_channel(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& rstd) {
  if (input.is_cuda()) {
    // In evaluation mode the kernel takes the variance; it, too, subtracts the mean first. The CPU's does not.
    const at::Tensor variance = with_dtype(rstd, at::kFloat).square().reciprocal_();
    return std::get<0>(at::native_batch_norm(input, /*weight=*/{}, /*bias=*/{}, with_dtype(mean, at::kFloat), variance,
                                             /*training=*/false, /*momentum=*/0, /*eps=*/0));
  }
  std::vector<c10::SymInt> per_channel(static_cast<size_t>(input.dim()), 1);
  per_channel[1] = input.sym_size(1);
  return normalized_by(input, mean.view_symint(per_channel), rstd.view_symint(per_channel));
}

at::Tensor SavedNormalization::zero_mean() const { return at::zeros_like(rstd); }

at::Tensor SavedNormalization::unit_rstd() const { return at::ones_like(rstd); }

bool needs_normalized(const Normalization& tensors) { return wants_grad(tensors.input) || wants_grad(tensors.weight); }

void save_normalization_of(torch::autograd::AutogradContext* ctx, const Normalization& tensors,
                           const at::Tensor& normalized, const Quantization& quantization,
                           const std::optional<at::Tensor>& rng_state) {
  at::Tensor packed;
  if (normalized.defined()) {
    packed = save_packed(ctx, normalized, quantization, rng_state);
  } else {
    save_layout(ctx, storage_order(tensors.input));
  }
  ctx->save_for_backward({packed, tensors.weight, tensors.bias, tensors.rstd});
}

SavedNormalization saved_normalization(torch::autograd::AutogradContext* ctx, const at::Tensor& grad_output) {
  const torch::autograd::variable_list saved = ctx->get_saved_variables();
  const std::array<bool, 3> wanted = wanted_gradients(ctx);
  return {.normalized = wanted[0] || wanted[1] ? unpack_saved(ctx, saved[0]) : activation_like(ctx, grad_output),
          .weight = saved[1],
          .bias = saved[2],
          .rstd = saved[3],
          .wanted = wanted};
}

bool keeps_input(const at::Tensor& input, const SaveOptions& saving) {
  return !saving.retention.compress || input.sym_numel() == 0 || has_pass_copy(input, saving.retention);
}

UnitStatistics unit_statistics(const at::Tensor& rstd, const at::Tensor& weight) {
  return {.zero = at::zeros_like(rstd),
          .one = at::ones_like(rstd),
          .weight = weight.defined() ? with_dtype(weight, at::kFloat).mul(rstd) : rstd};
}

}  // namespace actnn
