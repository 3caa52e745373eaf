#include "src/blocks/steps/row_norm.h"

#include <c10/util/Exception.h>

#include <utility>

#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

RowNorm row_norm_of(const RowStatistics& statistics, const std::optional<at::Tensor>& weight,
                    const std::optional<at::Tensor>& bias, const at::Tensor& input) {
  TORCH_CHECK_VALUE(statistics.dimensions <= input.dim(), "block: a norm over the last ", statistics.dimensions,
                    " dimensions must have an input of as many or more, got shape ", input.sym_sizes());
  return {.is_centered = statistics.is_centered,
          .eps = statistics.eps,
          .dimensions = statistics.dimensions,
          .weight = weight,
          .bias = bias};
}

NormalizedRows normalize(Operands& operands, const RowStatistics& statistics, const NormOperands& norm,
                         const at::Tensor& input, const NormalizedForms& forms) {
  return normalize_rows(row_norm_of(statistics, operands.parameter(norm.weight), operands.parameter(norm.bias), input),
                        input, forms);
}

}  // namespace

at::Tensor row_norm(Operands& operands, Value output, const RowStatistics& statistics, const NormOperands& norm) {
  return normalize(operands, statistics, norm, operands.value(norm.input), {.dtype = operands.dtype(output)}).output;
}

NormalizedRows row_norm_forward(ForwardRun& run, Value output, const RowStatistics& statistics,
                                const NormOperands& norm, const at::Tensor& input,
                                std::optional<RowAddition> addition) {
  NormalizedForms forms{.dtype = run.dtype(output), .second = run.second_dtype(output)};
  forms.addition = std::move(addition);
  if (run.saves(output, Form::kNormalized)) {
    forms.normalized = decoding_dtype(forms.dtype, forms.second.value_or(forms.dtype));
  }
  forms.rstd = run.saves(output, Form::kStatistics);
  NormalizedRows rows = normalize(run, statistics, norm, input, forms);
  if (forms.normalized) {
    save_normalized_copy(run, output, rows.normalized);
  }
  if (forms.rstd) {
    run.save(output, Form::kStatistics, {std::move(rows.rstd)});
  }
  if (forms.second) {
    run.set_second(output, std::move(rows.second_output));
  }
  run.set(output, std::move(rows.output));
  return rows;
}

SummedGradient row_norm_backward(BackwardRun& run, Value output, const RowStatistics& statistics,
                                 const NormOperands& norm, Gradient grad, std::optional<RowBranch> branch) {
  const std::array<bool, 3> wanted = norm.wanted(run);
  RowNormSaved saved{.grad = std::move(grad.first),
                     .second_grad = std::move(grad.second),
                     .normalized = {},
                     .rstd = {},
                     .residual_grad = {},
                     .dtype = run.dtype(norm.input)};
  if (wanted[0] || wanted[1]) {
    // Where a product under autocast has given the gradient, x-hat need not be finer.
    const at::ScalarType finest = saved.second_grad.defined() && saved.second_grad.scalar_type() == at::kBFloat16
                                      ? at::kBFloat16
                                      : saved.grad.scalar_type();
    saved.normalized = unpack_copy(run.saved(output, Form::kNormalized), run.saved_format(output), run.sizes(output),
                                   run.layout(output), decoding_dtype(run.dtype(output), finest));
  }
  if (wanted[0]) {
    saved.rstd = run.saved(output, Form::kStatistics)[0];
    Gradient residual = run.take(norm.input);
    residual.join();
    saved.residual_grad = std::move(residual.first);
    saved.branch = std::move(branch);
  }
  RowNormGradients gradients = normalize_rows_backward(
      row_norm_of(statistics, run.parameter(norm.weight), run.parameter(norm.bias), saved.grad), saved, wanted);
  if (wanted[1]) {
    run.add(*norm.weight, std::move(gradients.weight));
  }
  if (wanted[2]) {
    run.add(*norm.bias, std::move(gradients.bias));
  }
  if (wanted[0]) {
    run.add(norm.input, std::move(gradients.input));
  }
  return std::move(gradients.branch);
}

}  // namespace actnn::blocks
