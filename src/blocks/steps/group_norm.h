#pragma once

#include <optional>

#include "src/blocks/steps/normalized.h"

namespace actnn::blocks {

/// `torch.nn.GroupNorm` of a value [N, C, ...].
struct GroupNorm : NormOf<GroupNorm> {
  static constexpr const char* kName = "group_norm";

  std::optional<ParameterIndex> weight = std::nullopt;
  std::optional<ParameterIndex> bias = std::nullopt;
  int64_t groups = 1;
  double eps = 1e-5;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kChannels; }
  NormOperands norm_operands() const override { return {inputs[0], weight, bias}; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
