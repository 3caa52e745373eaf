#pragma once

#include "src/blocks/step.h"

namespace actnn::blocks {

/// Rotary embedding (Su et al. 2021, arXiv:2104.09864) in halves: of x [..., n], cosines and sines, which broadcast to
/// it, x cos + (-second half of x, first half) sin. Backward turns the other way. Cosines and sines are saved as they
/// are, and get no gradient.
struct Rotary : StepOf<Rotary> {
  static constexpr const char* kName = "rotary";

  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Value> stored_alike() const override { return {inputs[0], output()}; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<Need> needs(const Wants& wants) const override;
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  std::vector<Value> copies_to_recompute() const override { return {inputs[0]}; }
  std::vector<Need> needs_to_recompute() const override {
    return {{inputs[1], Form::kExact}, {inputs[2], Form::kExact}};
  }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
