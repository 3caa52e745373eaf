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

NormalizedRows normalize(Operands& operands, Value output, const RowStatistics& statistics, const NormOperands& norm,
                         bool keeps_normalized, bool keeps_rstd) {
  const at::Tensor input = operands.value(norm.input);
  return normalize_rows(
      row_norm_of(statistics, operands.parameter(norm.weight), operands.parameter(norm.bias), input), input,
      operands.dtype(output), keeps_normalized, keeps_rstd);
}

}  // namespace

at::Tensor row_norm(Operands& operands, Value output, const RowStatistics& statistics, const NormOperands& norm) {
  return normalize(operands, output, statistics, norm, false, false).output;
}

void row_norm_forward(ForwardRun& run, Value output, const RowStatistics& statistics, const NormOperands& norm) {
  const bool keeps_normalized = run.saves(output, Form::kNormalized);
  NormalizedRows rows =
      normalize(run, output, statistics, norm, keeps_normalized, run.saves(output, Form::kStatistics));
  if (keeps_normalized) {
    save_normalized_copy(run, output, rows.normalized);
  }
  if (rows.rstd.defined()) {
    run.save(output, Form::kStatistics, {std::move(rows.rstd)});
  }
  run.set(output, std::move(rows.output));
}

void row_norm_backward(BackwardRun& run, Value output, const RowStatistics& statistics, const NormOperands& norm) {
  const std::array<bool, 3> wanted = norm.wanted(run);
  Gradient grad = run.take(output);
  RowNormSaved saved{.grad = std::move(grad.first),
                     .second_grad = std::move(grad.second),
                     .normalized = {},
                     .rstd = {},
                     .residual_grad = {},
                     .dtype = run.dtype(norm.input)};
  if (wanted[0] || wanted[1]) {
    saved.normalized = unpack_copy(run.saved(output, Form::kNormalized), run.saved_format(output), run.sizes(output),
                                   run.layout(output), run.dtype(output));
  }
  if (wanted[0]) {
    saved.rstd = run.saved(output, Form::kStatistics)[0];
    Gradient residual = run.take(norm.input);
    residual.join();
    saved.residual_grad = std::move(residual.first);
  }
  RowNormGradients gradients =
      normalize_rows_backward(row_norm_of(statistics, run.parameter(norm.weight), run.parameter(norm.bias), saved.grad),
                              saved, wanted);
  if (wanted[1]) {
    run.add(*norm.weight, std::move(gradients.weight));
  }
  if (wanted[2]) {
    run.add(*norm.bias, std::move(gradients.bias));
  }
  if (wanted[0]) {
    run.add(norm.input, std::move(gradients.input));
  }
}

}  // namespace actnn::blocks
