#pragma once

#include "src/blocks/steps/activation.h"

namespace actnn::blocks {

/// A smooth activation, x times a gate of x, of which nothing is kept but the copy of its input: backward computes the
/// derivative of it, and the copy of the output for whoever reads that. Such a copy is finer than those of derivative
/// and output would be with more bytes; the bias, of the order of the step squared, is small from 5 bits on.
struct KeptInputActivation : StepOf<KeptInputActivation> {
  static constexpr const char* kName = "kept_input_activation";

  ActivationKind kind;
  int64_t bits;  ///< the fewest of the input's copy

  KeptInputActivation(const Activation& activation, int64_t bits_) : kind(activation.kind), bits(bits_) {
    inputs = activation.inputs;
    outputs = activation.outputs;
  }

  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override { return {known.sizes(inputs[0])}; }
  std::vector<Need> needs(const Wants& wants) const override;
  std::vector<Need> needs_to_recompute() const override { return {input_copy()}; }
  bool copies_from_saved(Value /*output*/) const override { return true; }
  at::Tensor copy_from_saved(BackwardRun& run, at::ScalarType dtype) const override;
  bool gives_copy(BackwardRun& run) const override;
  bool packs_input() const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;

 private:
  Need input_copy() const { return {.value = inputs[0], .form = Form::kCopy, .bits = bits}; }
};

/// Of the copies that the derivative of a smooth activation is computed from: with fewer its bias shows
/// (docs/accuracy.md).
inline constexpr int64_t kFewestSmoothBits = 4;

/// Whether functions of a copy of an activation's input stand for it and its derivative: both are smooth. That of
/// hardswish jumps.
bool is_smooth(ActivationKind kind);

}  // namespace actnn::blocks
