#pragma once

#include <optional>

#include "src/blocks/fusions/dropout_add.h"
#include "src/blocks/step.h"
#include "src/blocks/steps/row_norm.h"

namespace actnn::blocks {

/// A residual, plus a branch or the dropout of one, and the norm of the rows of their sum, in one pass: outputs are the
/// norm's, and the sum, which is there if others read it, too.
struct AddNorm : StepOf<AddNorm> {
  static constexpr const char* kName = "add_norm";

  double probability;  ///< of dropout; 0: without
  RowStatistics statistics;
  std::optional<ParameterIndex> weight;
  std::optional<ParameterIndex> bias;
  bool keeps_sum;

  AddNorm(const Branch& branch, const RowStatistics& own_statistics, const NormOperands& norm, Value output,
          bool others_read_sum)
      : probability(branch.probability),
        statistics(own_statistics),
        weight(norm.weight),
        bias(norm.bias),
        keeps_sum(others_read_sum) {
    inputs = {branch.x, branch.residual};
    outputs = {output, norm.input};
  }

  Value sum() const { return outputs[1]; }

  std::vector<ParameterIndex> parameters() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kPlain; }
  bool is_of_rows() const override { return true; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<Need> needs(const Wants& wants) const override;
  std::vector<Need> needs_to_recompute() const override { return {{output(), Form::kNormalized}}; }
  bool copies_from_saved(Value value) const override { return value == output(); }
  bool depends_on_parameters(Value value) const override { return value == output(); }
  at::Tensor copy_from_saved(BackwardRun& run, at::ScalarType dtype) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;

 private:
  NormOperands norm_operands() const { return {sum(), weight, bias}; }
  /// What the pass of the norm's backward makes of the sum's gradient: that of the branch, where it is another tensor.
  std::optional<RowBranch> branch_of(const BackwardRun& run) const;
};

}  // namespace actnn::blocks
