#pragma once

#include <optional>
#include <string>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// `torch.nn.BatchNorm1d` to `BatchNorm3d` of a value [N, C, ...]. The pass of fusions/norm_act.h computes it, alone or
/// with what follows.
struct BatchNorm : StepOf<BatchNorm> {
  static constexpr const char* kName = "batch_norm";

  std::optional<ParameterIndex> weight = std::nullopt;
  std::optional<ParameterIndex> bias = std::nullopt;
  std::optional<BufferIndex> running_mean = std::nullopt;
  std::optional<BufferIndex> running_var = std::nullopt;
  std::optional<BufferIndex> num_batches_tracked = std::nullopt;
  bool training = true;  ///< statistics are the batch's, and update the running ones; else the running ones
  std::optional<double> momentum = 0.1;  ///< none: the average over all batches
  double eps = 1e-5;
  /// The process group whose ranks' batches together are the batch, by the name that it is registered under; none: this
  /// rank's is.
  std::optional<std::string> group_name = std::nullopt;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kChannels; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override { return {known.sizes(inputs[0])}; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
