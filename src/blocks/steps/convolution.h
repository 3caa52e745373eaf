#pragma once

#include <array>
#include <vector>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// A convolution over 1 to 3 spatial dimensions, or a transposed one. Its weight is [out, in / groups, ...], transposed
/// [in, out / groups, ...].
struct Convolution : StepOf<Convolution> {
  static constexpr const char* kName = "convolution";

  ParameterIndex weight;
  std::optional<ParameterIndex> bias;
  std::vector<int64_t> stride;
  std::vector<int64_t> padding;
  std::vector<int64_t> dilation;
  int64_t groups = 1;
  bool transposed = false;
  std::vector<int64_t> output_padding;  ///< of transposed ones; else none

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kChannels; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<ParameterIndex> cast_parameters() const override;
  std::vector<Need> needs(const Wants& wants) const override;
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  bool is_product() const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;

 private:
  void add_input_gradient(BackwardRun& run, const at::Tensor& grad, const at::Tensor& weights) const;
  at::Tensor input_gradient(const BackwardRun& run, const at::Tensor& grad, const at::Tensor& weights) const;
  bool is_matrix_product(const at::Tensor& weights) const;
  bool is_of_pixels(const at::Tensor& weights) const;  ///< reads pixels one by one
  std::array<at::Tensor, 3> weight_gradients(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weights,
                                             bool wants_bias) const;
  /// Of input, weight and bias; undefined where not wanted.
  std::array<at::Tensor, 3> gradients(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weights,
                                      std::array<bool, 3> wanted) const;
};

}  // namespace actnn::blocks
