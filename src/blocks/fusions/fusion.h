#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "actnn/blocks/plan.h"
#include "src/blocks/step.h"

/// \file
/// How steps become passes over memory that compute several of them: each fusion looks at a window of a program's
/// steps.

namespace actnn::blocks {

/// A program while it is planned, as fusions see it.
class Window {
 public:
  Window(const Program& program, const PlanOptions& options, const std::vector<Layout>& layouts);

  const Program& program;
  const PlanOptions& options;
  const std::vector<Layout>& layouts;

  /// The number of the step that makes a value; none for an input.
  std::optional<size_t> maker(Value value) const { return makers_[value.number]; }
  /// That step, if it is a `Kind`.
  template <class Kind>
  const Kind* made_by(Value value) const {
    return maker(value) ? dynamic_cast<const Kind*>(program.steps[*maker(value)].get()) : nullptr;
  }
  /// The step that alone reads a value which is no result, if there is one; none for several readers.
  std::optional<size_t> sole_reader(Value value) const;
  template <class Kind>
  const Kind* sole_reader_as(Value value) const {
    const std::optional<size_t> reader = sole_reader(value);
    return reader ? dynamic_cast<const Kind*>(program.steps[*reader].get()) : nullptr;
  }
  /// Whether a value is an input of the program, or a view of one: its copy is perhaps somebody else's.
  bool is_input(Value value) const;
  /// Whether values have one dtype.
  bool have_one_dtype(const std::vector<Value>& values) const;

 private:
  std::vector<std::vector<size_t>> readers_;
  std::vector<std::optional<size_t>> makers_;
};

/// The fewest bits of a copy that a convolution may be computed again from: its noise is in both factors of a weight's
/// gradient then.
inline constexpr int64_t kFewestRecomputeBits = 3;

/// A pass, the program's steps that it computes, and the one in whose place it runs.
struct FusedPass {
  std::shared_ptr<Step> pass;
  std::vector<size_t> steps;
  size_t place;
};

/// The passes of batch norms, of residual additions and of piecewise linear activations (fusions/norm_act.h), in the
/// program's order.
std::vector<FusedPass> find_norm_act_passes(const Window& window);

/// Norms of rows with the sums of a branch and a residual that they normalize (fusions/add_norm.h).
std::vector<FusedPass> find_add_norms(const Window& window);

/// Sums of a residual and the dropout of a branch (fusions/dropout_add.h).
std::vector<FusedPass> find_dropout_adds(const Window& window);

/// Products of a smooth activation of what this program computes, and a gate (fusions/gated_activation.h).
std::vector<FusedPass> find_gated_activations(const Window& window);

}  // namespace actnn::blocks
