#pragma once

#include <vector>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// Elements shifted along dimensions, those of the end to the front: `torch.roll`.
struct Roll : ViewOf<Roll> {
  static constexpr const char* kName = "roll";

  std::vector<int64_t> shifts;
  std::vector<int64_t> dimensions;  ///< one for each shift

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override { return {known.sizes(inputs[0])}; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
