#pragma once

#include <cstddef>
#include <optional>

#include "src/blocks/fusions/fusion.h"
#include "src/blocks/step.h"
#include "src/blocks/steps/add.h"

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

/// What a sum adds to a residual.
struct Branch {
  Value x;
  Value residual;
  double probability = 0.0;                      ///< of x's dropout; 0: without
  std::optional<size_t> dropout = std::nullopt;  ///< that step of the program
};

/// The branch of a sum, step number `place`, that is dropped, and whose dropout nobody else reads.
std::optional<Branch> find_dropped_branch(const Window& window, const Add& sum, size_t place);

/// Gives branch and residual their gradients, of that of the sum; `probability` 0: without dropout.
void add_gradients_of_branch(BackwardRun& run, const at::Tensor& grad, Value sum, const Branch& branch);

}  // namespace actnn::blocks
