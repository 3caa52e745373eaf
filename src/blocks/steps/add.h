#pragma once

#include "src/blocks/step.h"

namespace actnn::blocks {

/// The sum of two values, which may broadcast.
struct Add : StepOf<Add> {
  static constexpr const char* kName = "add";

  bool broadcast = false;  ///< whether the sizes may differ

  Add() = default;
  Add(Value first, Value second) { inputs = {first, second}; }

  void visit_fields(FieldVisitor& fields) override { fields.optional("broadcast", broadcast); }
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

/// Gives an input of a sum its gradient, of that of the sum, if it is wanted.
void add_gradient_of_summand(BackwardRun& run, const at::Tensor& grad, Value input);

}  // namespace actnn::blocks
