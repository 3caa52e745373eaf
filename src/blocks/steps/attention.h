#pragma once

#include <optional>

#include "src/blocks/step.h"
#include "src/blocks/steps/attention_kernels.h"

namespace actnn::blocks {

/// Of copies that attention is computed again from: with fewer, gradients of query and key are too short, by 2 to 7 %
/// with 4 and scores that deviate by 2 to 4.
inline constexpr int64_t kFewestAttentionBits = 5;

/// `torch.nn.functional.scaled_dot_product_attention` of query, key, value [..., heads, length, head size] and perhaps
/// a mask, boolean or added to scores, by the kernel that torch takes.
///
/// It saves its inputs, its output and the logarithm of the sum of each row's exponentials, so that any kernel's
/// backward serves any kernel's forward, exactly, as torch does; or copies of its inputs, of which backward computes
/// output and logarithms again. Those of forward would not do: an error e of a score is a factor exp(e) of its weight,
/// and rows of weights that do not add up to 1 have no bound. Copies bias gradients of query and key, by as much as
/// their noise squared. Dropout's mask is the kernel's own, so that with dropout the output, whose product with its
/// gradient backward takes from each row, is a copy; keys are less their mean there.
///
/// The mask itself is saved; of an added one there is a gradient, which kernels write for each sample and head before
/// it is summed.
struct Attention : StepOf<Attention> {
  static constexpr const char* kName = "attention";

  double probability = 0.0;                    ///< that a weight is dropped
  bool causal = false;                         ///< a position sees itself and those before it
  std::optional<double> scale = std::nullopt;  ///< none: 1 / sqrt(head size)
  bool grouped = false;                        ///< several heads of the query share one of key and value
  /// The mask is [m, heads, length, length of the keys], or broadcasts to that, and stands for each m samples in a row,
  /// as of windows.
  bool mask_repeats = false;
  /// The fewest bits of copies of query, key and value; 0: they are saved exactly. No field: the planner's.
  int64_t copy_bits = 0;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kHeads; }
  bool is_of_rows() const override { return true; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<Need> needs(const Wants& wants) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void forward(ForwardRun& run) const override;
  void backward(BackwardRun& run) const override;

 private:
  bool has_mask() const { return inputs.size() == 4; }
  bool wants_mask(const Wants& wants) const;
  Form saved_form(size_t place) const;
  AttentionResult saved_result(BackwardRun& run) const;
  /// Takes the mean from the keys where that helps.
  AttentionResult result_of_copies(BackwardRun& run, AttentionArguments& arguments) const;
  AttentionRandomState random_state(BackwardRun& run) const;
};

}  // namespace actnn::blocks
