#include "src/blocks/steps/rms_norm.h"

#include <ATen/ops/_fused_rms_norm_backward.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rms_norm.h>

#include <array>
#include <limits>
#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/last_dimensions.h"
#include "src/blocks/steps/normalized.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

at::Tensor rms_norm_of(const RmsNorm& norm, const at::Tensor& input, const std::optional<at::Tensor>& weight) {
  return at::rms_norm_symint(input, row_sizes(input.sym_sizes(), norm.dimensions), weight, norm.eps);
}

/// 1 / sqrt(mean of squares + eps) of each row, float32.
at::Tensor inverse_rms(const RmsNorm& norm, const at::Tensor& input) {
  const c10::SymInt count = element_count(row_sizes(input.sym_sizes(), norm.dimensions));
  return at::linalg_vector_norm(input, 2, last_dimensions(norm.dimensions), /*keepdim=*/true, /*dtype=*/at::kFloat)
      .square_()
      .div_(c10::Scalar(count))
      .add_(norm.eps.value_or(std::numeric_limits<float>::epsilon()))
      .rsqrt_();
}

/// Gradients of the input, but for the division by the root mean square, and of the weight, those that are wanted:
/// torch's kernel, which CUDA alone has, and which takes no symbolic sizes, or the formula.
std::pair<at::Tensor, at::Tensor> rms_norm_gradients(const NormGradient& gradient, const Sizes& row, const Sizes& rows,
                                                     const std::optional<at::Tensor>& weight,
                                                     std::array<bool, 2> wanted) {
  if (const auto row_numbers = c10::asIntArrayRefSlowOpt(row); row_numbers && gradient.grad.is_cuda()) {
    auto [grad_input, grad_weight] =
        at::_fused_rms_norm_backward(gradient.grad, gradient.normalized, *row_numbers,
                                     at::ones_symint(rows, gradient.grad.options().dtype(at::kFloat)), weight, wanted);
    return {std::move(grad_input), std::move(grad_weight)};
  }
  at::Tensor grad_weight;
  if (wanted[1]) {
    grad_weight = sum_to(gradient.grad.mul(gradient.normalized), row);
  }
  at::Tensor grad_input;
  if (wanted[0]) {
    const at::Tensor grad = weight ? gradient.grad.mul(*weight) : gradient.grad;
    const at::Tensor mean =
        grad.mul(gradient.normalized).mean(last_dimensions(static_cast<int64_t>(row.size())), /*keepdim=*/true);
    grad_input = grad.sub(gradient.normalized.mul(mean));
  }
  return {std::move(grad_input), std::move(grad_weight)};
}

}  // namespace

void RmsNorm::visit_fields(FieldVisitor& fields) {
  fields.optional("weight", weight);
  fields.required("dimensions", dimensions);
  fields.optional("eps", eps);
}

void RmsNorm::check() const {
  check_inputs(*this, 1);
  check_dimensions(*this, dimensions);
}

std::vector<at::Tensor> RmsNorm::compute(Operands& operands) const {
  const at::Tensor input = with_dtype(operands.value(inputs[0]), operands.dtype(output()));
  return {with_dtype(rms_norm_of(*this, input, operands.parameter(weight)), operands.dtype(output()))};
}

void RmsNorm::forward(ForwardRun& run) const {
  const at::Tensor input = with_dtype(run.value(inputs[0]), run.dtype(output()));
  at::Tensor result = with_dtype(rms_norm_of(*this, input, run.parameter(weight)), run.dtype(output()));
  if (run.saves(output(), Form::kStatistics)) {
    save_rstd(run, output(), inverse_rms(*this, input));
  }
  save_normalized(run, output(), [&] { return weight ? rms_norm_of(*this, input, std::nullopt) : result; });
  run.set(output(), std::move(result));
}

void RmsNorm::backward(BackwardRun& run) const {
  const bool wants_input = run.wants(inputs[0]);
  const bool wants_weight = run.wants(weight);
  if (!wants_input && !wants_weight) {
    return;
  }
  const Sizes& sizes = run.sizes(output());
  const NormGradient gradient = norm_gradient(run, output());
  auto [grad_input, grad_weight] =
      rms_norm_gradients(gradient, row_sizes(sizes, dimensions), per_row(sizes, dimensions),
                         parameter_like(run, weight, gradient.grad), {wants_input, wants_weight});
  if (wants_weight) {
    run.add(*weight, std::move(grad_weight));
  }
  if (wants_input) {
    run.add(inputs[0], grad_input.mul_(run.saved(output(), Form::kStatistics)[0]));
  }
}

namespace {
const RegisterStep<RmsNorm> kRmsNormStep;
}

}  // namespace actnn::blocks
