#pragma once

#include <optional>

#include "src/blocks/steps/normalized.h"

namespace actnn::blocks {

/// `torch.nn.RMSNorm`.
struct RmsNorm : NormOf<RmsNorm> {
  static constexpr const char* kName = "rms_norm";

  std::optional<ParameterIndex> weight = std::nullopt;
  int64_t dimensions = 1;                    ///< the last ones, which are normalized together
  std::optional<double> eps = std::nullopt;  ///< none: float32's epsilon

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kPlain; }
  bool is_of_rows() const override { return true; }
  NormOperands norm_operands() const override { return {.input = inputs[0], .weight = weight}; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
