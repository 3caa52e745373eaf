#pragma once

#include <vector>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// The mean over some dimensions; over all if none are named.
struct Mean : StepOf<Mean> {
  static constexpr const char* kName = "mean";

  std::vector<int64_t> dimensions;
  bool keepdim = false;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kPlain; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
