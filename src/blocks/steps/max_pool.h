#pragma once

#include <vector>

#include "actnn/autograd/pooling.h"
#include "actnn/ops/max_pool.h"
#include "src/blocks/step.h"

namespace actnn::blocks {

/// Maxima of windows, over 1 to 3 spatial dimensions. Where they are in their windows waits for backward.
struct MaxPool : StepOf<MaxPool> {
  static constexpr const char* kName = "max_pool";

  std::vector<int64_t> kernel_size;
  std::vector<int64_t> stride;
  std::vector<int64_t> padding;
  std::vector<int64_t> dilation;
  bool ceil_mode = false;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kChannels; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<Need> needs(const Wants& wants) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;

 private:
  bool is_volume() const { return kernel_size.size() == 3; }
  MaxPoolGeometry volume() const;
  /// Of pools over 1 or 2 dimensions.
  MaxPool2dWindow window() const;
};

}  // namespace actnn::blocks
