#pragma once

#include <optional>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// `torch.nn.GroupNorm` of a value [N, C, ...].
struct GroupNorm : StepOf<GroupNorm> {
  static constexpr const char* kName = "group_norm";

  std::optional<ParameterIndex> weight = std::nullopt;
  std::optional<ParameterIndex> bias = std::nullopt;
  int64_t groups = 1;
  double eps = 1e-5;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kChannels; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override { return {known.sizes(inputs[0])}; }
  std::vector<Need> needs(const Wants& wants) const override;
  std::vector<Need> needs_to_recompute() const override { return {{output(), Form::kNormalized}}; }
  bool copies_from_saved() const override { return true; }
  at::Tensor copy_from_saved(BackwardRun& run) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
