#pragma once

#include <optional>

#include "src/blocks/steps/normalized.h"

namespace actnn::blocks {

/// `torch.nn.LayerNorm`.
struct LayerNorm : NormOf<LayerNorm> {
  static constexpr const char* kName = "layer_norm";

  std::optional<ParameterIndex> weight = std::nullopt;
  std::optional<ParameterIndex> bias = std::nullopt;
  int64_t dimensions = 1;  ///< the last ones, which are normalized together
  double eps = 1e-5;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kPlain; }
  bool is_of_rows() const override { return true; }
  NormOperands norm_operands() const override { return {inputs[0], weight, bias}; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
