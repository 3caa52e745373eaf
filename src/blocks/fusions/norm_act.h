#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "src/blocks/gradient.h"
#include "src/blocks/step.h"
#include "src/blocks/steps/batch_norm.h"

namespace actnn::blocks {

/// Batch normalization, residual addition and activation in one pass over memory (ops/norm_act.h), which packs what
/// backward needs as it goes. Each of the three may be absent, but an activation that is not linear on two sides of 0
/// comes with a norm and without a residual. A batch norm alone is computed by it, too.
///
/// With a norm and no residual, one packed tensor has the normalized values and the masks of the activation; it is the
/// copy of the output, too. In front of a residual addition, the norm's input is computed again, or normalized values
/// are saved beside the copy of the sum.
struct NormAct : StepOf<NormAct> {
  static constexpr const char* kName = "norm_act";

  std::optional<BatchNorm> norm = std::nullopt;
  bool has_residual = false;  ///< the second input
  FusedActivation activation = {};
  /// Of the codes that the pass packs, beside the activation's masks; 0: masks alone.
  std::optional<int64_t> bits = std::nullopt;
  std::optional<int64_t> norm_bits = std::nullopt;  ///< of normalized values packed beside a sum
  bool recompute = false;                           ///< the norm's input is computed again

  LayoutRule layout_rule() const override { return LayoutRule::kChannels; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override { return {known.sizes(inputs[0])}; }
  std::vector<ParameterIndex> parameters() const override;
  std::vector<Need> needs(const Wants& wants) const override;
  bool recomputes_inputs() const override { return recompute; }
  std::optional<CopyFormat> packs(Value output) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;

 private:
  bool needs_normalized(const Wants& wants) const;
  bool packs_normalized(const Wants& wants) const { return norm_bits && needs_normalized(wants); }
  /// Whether the numbers of channels are saved: of an input that is computed again, or of which only the sides count.
  bool saves_channels(const Wants& wants) const;
  std::tuple<at::Tensor, at::Tensor, at::Tensor> normalize(ForwardRun& run, const at::Tensor& x,
                                                           at::Tensor& rows) const;
  void pass_through(BackwardRun& run, Gradient gradient) const;
};

}  // namespace actnn::blocks
