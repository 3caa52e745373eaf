#pragma once

#include "src/blocks/step.h"
#include "src/ops/activation_names.h"

namespace actnn::blocks {

/// A smooth activation times a gate, as SwiGLU and GEGLU have it, in one pass: inputs x and gate, activation(x) gate.
/// Nothing is kept but copies of both inputs, from which backward computes activation, derivative and the product
/// again.
struct GatedActivation : StepOf<GatedActivation> {
  static constexpr const char* kName = "gated_activation";

  ActivationKind kind;
  int64_t bits;  ///< the fewest of the copy of x

  GatedActivation(ActivationKind kind_, int64_t bits_, Value x, Value gate, Value output) : kind(kind_), bits(bits_) {
    inputs = {x, gate};
    outputs = {output};
  }

  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<Need> needs(const Wants& wants) const override;
  std::vector<Need> needs_to_recompute() const override { return copies(); }
  bool copies_from_saved(Value /*output*/) const override { return true; }
  at::Tensor copy_from_saved(BackwardRun& run, at::ScalarType dtype) const override;
  bool gives_copy(BackwardRun& run) const override;
  bool packs_input() const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;

 private:
  std::vector<Need> copies() const {
    return {{.value = inputs[0], .form = Form::kCopy, .bits = bits}, {.value = inputs[1], .form = Form::kCopy}};
  }
};

}  // namespace actnn::blocks
