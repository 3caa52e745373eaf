#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <vector>

#include "src/blocks/run.h"
#include "src/blocks/step.h"

/// \file
/// Norms by the statistics of a sample or a row: what they save and read. Backward needs x-hat, the normalized value,
/// and 1 / deviation, not the input: with g the gradient of x-hat, the gradient of the input is (g - mean(g) - x-hat
/// mean(g x-hat)) / deviation. So what is packed is x-hat, whose scale is 1 whatever the input's is. Torch's backward
/// kernels, given x-hat as an input of mean 0 and deviation 1, compute all but the last division, and the gradients of
/// weight and bias.

namespace actnn::blocks {

/// A norm's input, and its weight and bias, where it has them.
struct NormOperands {
  Value input;
  std::optional<ParameterIndex> weight = std::nullopt;
  std::optional<ParameterIndex> bias = std::nullopt;

  bool is_affine() const { return weight || bias; }
  /// Of the gradients of input, weight and bias, those that are wanted.
  std::array<bool, 3> wanted(const Wants& wants) const;
  /// x-hat for the gradients of input and weight, 1 / deviation for the input's.
  std::vector<Need> needs(Value output, const Wants& wants) const;
};

/// A parameter of a norm as torch's kernels take it: on the CPU it may stay in float32 where the input does not.
std::optional<at::Tensor> norm_parameter(const std::optional<at::Tensor>& parameter, const at::Tensor& input);

/// The copy of the output: that of x-hat with the norm's weight and bias, which are of the last dimensions, or of
/// channels.
at::Tensor copy_from_normalized(BackwardRun& run, Value output, const NormOperands& norm, at::ScalarType dtype);

/// What the norms share: a copy of the output is computed of x-hat's.
template <class Derived>
class NormOf : public StepOf<Derived> {
 public:
  virtual NormOperands norm_operands() const = 0;

  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override { return {known.sizes(this->inputs[0])}; }
  std::vector<Need> needs(const Wants& wants) const override { return norm_operands().needs(this->output(), wants); }
  std::vector<Need> needs_to_recompute() const override { return {{this->output(), Form::kNormalized}}; }
  bool copies_from_saved(Value /*output*/) const override { return true; }
  at::Tensor copy_from_saved(BackwardRun& run, at::ScalarType dtype) const override {
    return copy_from_normalized(run, this->output(), norm_operands(), dtype);
  }
};

/// Packs and saves x-hat.
void save_normalized_copy(ForwardRun& run, Value output, const at::Tensor& normalized);

/// The same if this run must; `normalize` computes x-hat.
template <class Normalize>
void save_normalized(ForwardRun& run, Value output, const Normalize& normalize) {
  if (run.saves(output, Form::kNormalized)) {
    save_normalized_copy(run, output, normalize());
  }
}

/// Saves 1 / deviation, in float32, if this run must.
void save_rstd(ForwardRun& run, Value output, const at::Tensor& rstd);

/// What backward starts from: the gradient and the copy of x-hat, both in the layout of the value. The CPU computes in
/// float32; CUDA's kernels do so themselves, and read the value's dtype.
struct NormGradient {
  at::Tensor grad;
  at::Tensor normalized;
};
NormGradient norm_gradient(BackwardRun& run, Value output);

/// A parameter in the dtype of `like`; none for none.
std::optional<at::Tensor> parameter_like(BackwardRun& run, const std::optional<ParameterIndex>& index,
                                         const at::Tensor& like);

}  // namespace actnn::blocks
