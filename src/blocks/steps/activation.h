#pragma once

#include "src/blocks/step.h"
#include "src/ops/activation_names.h"

namespace actnn::blocks {

/// An activation of a number. One that is linear piece by piece saves a bit an element, exactly, a smooth one an
/// unbiased copy of its derivative.
struct Activation : StepOf<Activation> {
  static constexpr const char* kName = "activation";

  ActivationKind kind = ActivationKind::kReLU;
  double slope = 0.01;  ///< of a leaky ReLU, below 0

  Activation() = default;
  explicit Activation(Value input, ActivationKind kind_ = ActivationKind::kReLU, double slope_ = 0.01)
      : kind(kind_), slope(slope_) {
    inputs = {input};
  }

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override { return {known.sizes(inputs[0])}; }
  std::vector<Need> needs(const Wants& wants) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
