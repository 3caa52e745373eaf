#pragma once

#include <vector>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// The dimensions in another order.
struct Permute : ViewOf<Permute> {
  static constexpr const char* kName = "permute";

  std::vector<int64_t> dimensions;

  void visit_fields(FieldVisitor& fields) override { fields.required("dimensions", dimensions); }
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kView; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
  /// The dimensions, none of them negative.
  std::vector<int64_t> order() const;
};

}  // namespace actnn::blocks
