#pragma once

#include "src/blocks/step.h"

namespace actnn::blocks {

/// The product of two values, which may broadcast, and may be the same. The gradient of each reads a copy of the other.
struct Multiply : StepOf<Multiply> {
  static constexpr const char* kName = "multiply";

  Multiply() = default;
  Multiply(Value first, Value second) { inputs = {first, second}; }

  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<Need> needs(const Wants& wants) const override;
  /// A square of an unbiased copy is biased by the variance, and copies of related values may share noise.
  bool is_linear(const std::vector<bool>& exact) const override { return exact[0] || exact[1]; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
