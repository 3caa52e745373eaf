#pragma once

#include <optional>
#include <vector>

#include "actnn/autograd/pooling.h"
#include "src/blocks/step.h"

namespace actnn::blocks {

/// Means of windows, over 1 to 3 spatial dimensions.
struct AvgPool : StepOf<AvgPool> {
  static constexpr const char* kName = "avg_pool";

  std::vector<int64_t> kernel_size;
  std::vector<int64_t> stride;
  std::vector<int64_t> padding;
  bool ceil_mode = false;
  bool count_include_pad = true;
  std::optional<int64_t> divisor_override;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kChannels; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;

 private:
  /// Over 2 or 3 dimensions.
  AvgPoolGeometry geometry() const;
};

/// Means of windows whose extents follow from the output's.
struct AdaptiveAvgPool : StepOf<AdaptiveAvgPool> {
  static constexpr const char* kName = "adaptive_avg_pool";

  std::vector<int64_t> output_size;

  void visit_fields(FieldVisitor& fields) override { fields.required("output_size", output_size); }
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kChannels; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
