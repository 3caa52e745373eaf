#pragma once

#include <optional>

#include "src/blocks/steps/normalized.h"

namespace actnn::blocks {

/// `torch.nn.InstanceNorm1d` to `InstanceNorm3d` of a value [N, C, ...], by the statistics of each sample's channels.
struct InstanceNorm : NormOf<InstanceNorm> {
  static constexpr const char* kName = "instance_norm";

  std::optional<ParameterIndex> weight = std::nullopt;
  std::optional<ParameterIndex> bias = std::nullopt;
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
