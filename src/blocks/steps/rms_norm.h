#pragma once

#include <limits>
#include <optional>

#include "src/blocks/steps/row_norm.h"

namespace actnn::blocks {

/// `torch.nn.RMSNorm`.
struct RmsNorm : RowNormOf<RmsNorm> {
  static constexpr const char* kName = "rms_norm";

  std::optional<ParameterIndex> weight = std::nullopt;
  int64_t dimensions = 1;                    ///< the last ones, which are normalized together
  std::optional<double> eps = std::nullopt;  ///< none: float32's epsilon

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  NormOperands norm_operands() const override { return {.input = inputs[0], .weight = weight}; }
  RowStatistics statistics() const override {
    return {.is_centered = false, .eps = eps.value_or(std::numeric_limits<float>::epsilon()), .dimensions = dimensions};
  }
};

}  // namespace actnn::blocks
