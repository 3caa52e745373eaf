#include "src/blocks/steps/layer_norm.h"

#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <tuple>
#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/last_dimensions.h"
#include "src/blocks/steps/normalized.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_of(const LayerNorm& norm, Operands& operands,
                                                             const at::Tensor& input) {
  return at::native_layer_norm_symint(input, row_sizes(input.sym_sizes(), norm.dimensions),
                                      norm_parameter(operands.parameter(norm.weight), input),
                                      norm_parameter(operands.parameter(norm.bias), input), norm.eps);
}

}  // namespace

void LayerNorm::visit_fields(FieldVisitor& fields) {
  fields.optional("weight", weight);
  fields.optional("bias", bias);
  fields.required("dimensions", dimensions);
  fields.required("eps", eps);
}

void LayerNorm::check() const {
  check_inputs(*this, 1);
  check_dimensions(*this, dimensions);
}

std::vector<at::Tensor> LayerNorm::compute(Operands& operands) const {
  return {std::get<0>(layer_norm_of(*this, operands, with_dtype(operands.value(inputs[0]), operands.dtype(output()))))};
}

void LayerNorm::forward(ForwardRun& run) const {
  const at::Tensor input = with_dtype(run.value(inputs[0]), run.dtype(output()));
  auto [result, mean, rstd] = layer_norm_of(*this, run, input);
  save_rstd(run, output(), rstd);
  save_normalized(run, output(), [&, &result = result] {
    return weight || bias ? std::get<0>(at::native_layer_norm_symint(input, row_sizes(input.sym_sizes(), dimensions),
                                                                     std::nullopt, std::nullopt, eps))
                          : result;
  });
  run.set(output(), std::move(result));
}

void LayerNorm::backward(BackwardRun& run) const {
  const std::array<bool, 3> wanted = norm_operands().wanted(run);
  const Sizes& sizes = run.sizes(output());
  const Sizes row = row_sizes(sizes, dimensions);
  if (!wanted[0] && !wanted[1]) {
    run.add(*bias, sum_to(with_dtype(run.take_joined(output()), at::kFloat), row));
    return;
  }
  const NormGradient gradient = norm_gradient(run, output());
  const auto statistics = gradient.grad.options().dtype(at::kFloat);
  const Sizes rows = per_row(sizes, dimensions);
  auto [grad_input, grad_weight, grad_bias] = at::native_layer_norm_backward_symint(
      gradient.grad, gradient.normalized, row, at::zeros_symint(rows, statistics), at::ones_symint(rows, statistics),
      parameter_like(run, weight, gradient.grad), parameter_like(run, bias, gradient.grad), wanted);
  if (wanted[1]) {
    run.add(*weight, std::move(grad_weight));
  }
  if (wanted[2]) {
    run.add(*bias, std::move(grad_bias));
  }
  if (wanted[0]) {
    run.add(inputs[0], grad_input.mul_(run.saved(output(), Form::kStatistics)[0]));
  }
}

namespace {
const RegisterStep<LayerNorm> kLayerNormStep;
}

}  // namespace actnn::blocks
