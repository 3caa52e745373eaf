#pragma once

#include <optional>

#include "src/blocks/steps/row_norm.h"

namespace actnn::blocks {

/// `torch.nn.LayerNorm`.
struct LayerNorm : RowNormOf<LayerNorm> {
  static constexpr const char* kName = "layer_norm";

  std::optional<ParameterIndex> weight = std::nullopt;
  std::optional<ParameterIndex> bias = std::nullopt;
  int64_t dimensions = 1;  ///< the last ones, which are normalized together
  double eps = 1e-5;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  NormOperands norm_operands() const override { return {inputs[0], weight, bias}; }
  RowStatistics statistics() const override { return {.is_centered = true, .eps = eps, .dimensions = dimensions}; }
};

}  // namespace actnn::blocks
