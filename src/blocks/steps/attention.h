#pragma once

#include <optional>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// `torch.nn.functional.scaled_dot_product_attention` of query, key, value [..., heads, length, head size] and perhaps
/// a mask, boolean or added to scores, by the kernel that torch takes. It saves its inputs and its output exactly, as
/// torch does, and the logarithm of the sum of each row's exponentials, so that any kernel's backward serves any
/// kernel's forward. A mask gets no gradient.
struct Attention : StepOf<Attention> {
  static constexpr const char* kName = "attention";

  double probability = 0.0;                    ///< that a weight is dropped
  bool causal = false;                         ///< a position sees itself and those before it
  std::optional<double> scale = std::nullopt;  ///< none: 1 / sqrt(head size)
  bool grouped = false;                        ///< several heads of the query share one of key and value

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kPlain; }
  bool is_of_rows() const override { return true; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<Need> needs(const Wants& wants) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;

 private:
  bool has_mask() const { return inputs.size() == 4; }
};

}  // namespace actnn::blocks
