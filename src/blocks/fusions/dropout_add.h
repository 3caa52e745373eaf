#pragma once

#include "src/blocks/step.h"

namespace actnn::blocks {

/// A residual plus the dropout of what a branch has computed, in one pass: inputs x and residual. Where their sizes
/// differ, they broadcast, and it is two passes.
struct DropoutAdd : StepOf<DropoutAdd> {
  static constexpr const char* kName = "dropout_add";

  double probability;

  DropoutAdd(double probability_, Value x, Value residual, Value output) : probability(probability_) {
    inputs = {x, residual};
    outputs = {output};
  }

  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<Need> needs(const Wants& wants) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
