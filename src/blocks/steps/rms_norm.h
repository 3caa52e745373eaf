#pragma once

#include <optional>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// `torch.nn.RMSNorm`.
struct RmsNorm : StepOf<RmsNorm> {
  static constexpr const char* kName = "rms_norm";

  std::optional<ParameterIndex> weight = std::nullopt;
  int64_t dimensions = 1;                    ///< the last ones, which are normalized together
  std::optional<double> eps = std::nullopt;  ///< none: float32's epsilon

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kPlain; }
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
