#pragma once

#include "src/blocks/step.h"

namespace actnn::blocks {

/// Dropout in training. The random state that the mask is made of, 16 bytes, is all that it saves.
struct Dropout : StepOf<Dropout> {
  static constexpr const char* kName = "dropout";

  double probability = 0.5;  ///< that an element is dropped

  Dropout() = default;
  Dropout(Value input, double probability_) : probability(probability_) { inputs = {input}; }

  void visit_fields(FieldVisitor& fields) override { fields.required("probability", probability); }
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override { return {known.sizes(inputs[0])}; }
  std::vector<Need> needs(const Wants& wants) const override;
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  std::vector<Need> needs_to_recompute() const override { return {{output(), Form::kRandomState}}; }
  /// Where the output is computed again, with the mask of forward.
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
