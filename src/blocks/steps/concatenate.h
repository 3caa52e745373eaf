#pragma once

#include "src/blocks/step.h"

namespace actnn::blocks {

/// Values one after the other along a dimension.
struct Concatenate : ViewOf<Concatenate> {
  static constexpr const char* kName = "concatenate";

  int64_t dimension = 0;

  void visit_fields(FieldVisitor& fields) override { fields.required("dimension", dimension); }
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
