#pragma once

#include "src/blocks/step.h"

namespace actnn::blocks {

/// A product of the last dimension with a weight [out, in].
struct Linear : StepOf<Linear> {
  static constexpr const char* kName = "linear";

  ParameterIndex weight;
  std::optional<ParameterIndex> bias;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kPlain; }
  bool is_of_rows() const override { return true; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<ParameterIndex> cast_parameters() const override;
  std::vector<Need> needs(const Wants& wants) const override;
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  bool is_product() const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
