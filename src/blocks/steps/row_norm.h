#pragma once

#include "src/blocks/steps/normalized.h"
#include "src/ops/rows.h"

/// \file
/// Norms of rows, the last dimensions: layer norm, and that by the root mean square.

namespace actnn::blocks {

/// The norm without its parameters.
struct RowStatistics {
  bool is_centered;
  double eps;
  int64_t dimensions;
};

at::Tensor row_norm(Operands& operands, Value output, const RowStatistics& statistics, const NormOperands& norm);
/// Of the norm's input, or of what an addition makes it, whose results are returned.
NormalizedRows row_norm_forward(ForwardRun& run, Value output, const RowStatistics& statistics,
                                const NormOperands& norm, const at::Tensor& input,
                                std::optional<RowAddition> addition = std::nullopt);
/// The gradient of the input that is there already is added in the same pass. Returns the gradient of the branch, if it
/// is asked for and the input's is wanted.
SummedGradient row_norm_backward(BackwardRun& run, Value output, const RowStatistics& statistics,
                                 const NormOperands& norm, Gradient grad, std::optional<RowBranch> branch = {});

/// What both norms share.
template <class Derived>
class RowNormOf : public NormOf<Derived> {
 public:
  virtual RowStatistics statistics() const = 0;

  LayoutRule layout_rule() const override { return LayoutRule::kPlain; }
  bool is_of_rows() const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override {
    return {row_norm(operands, this->output(), statistics(), this->norm_operands())};
  }
  void forward(ForwardRun& run) const override {
    row_norm_forward(run, this->output(), statistics(), this->norm_operands(), run.value(this->inputs[0]));
  }
  void backward(BackwardRun& run) const override {
    row_norm_backward(run, this->output(), statistics(), this->norm_operands(), run.take(this->output()));
  }
};

}  // namespace actnn::blocks
