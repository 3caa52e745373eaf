#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "actnn/blocks/program.h"
#include "actnn/core/activation.h"
#include "actnn/core/columns.h"
#include "actnn/core/rounding.h"

/// \file
/// How a program is run: which steps are one pass over memory, and what is saved of each value for backward. A plan is
/// data: it can be printed, changed, and checked before a block is made of it.

namespace actnn::blocks {

/// What of a value is saved for backward.
enum class Form : int8_t {
  kCopy,         ///< an unbiased copy
  kExact,        ///< the value itself
  kNormalized,   ///< an unbiased copy of what a norm has normalized, before its weight and bias
  kDerivative,   ///< an unbiased copy of an activation's derivative
  kMask,         ///< where a gradient passes, a bit an element
  kPositions,    ///< of the maxima in a pool's windows
  kRandomState,  ///< that a dropout's mask is made of
  kStatistics,   ///< a few numbers per channel, sample or row
};

/// How a value's elements lie in memory.
enum class Layout : int8_t {
  kPlain,     ///< contiguous
  kChannels,  ///< [N, C, ...] with channels innermost: channels_last
  kHeads,     ///< [batch, heads, length, size] with [heads, size] innermost, as products make heads; else contiguous
  kStrided,   ///< a view's, which only views read: as the value that it shows has it
};

/// How an unbiased copy is kept.
struct CopyFormat {
  enum class Kind : int8_t {
    kPacked,   ///< one tensor, as `quantize`
    kColumns,  ///< one, as `quantize_columns`, of a value with channels innermost in memory; as `quantize` if it has
               ///< fewer than 64 rows, or is a picture of fewer than 8 channels
    kPass,     ///< two: what a norm's pass packed, and what leads from it to the value (ops/norm_act.h: packed, decode)
    kExact,    ///< one: the value
  };
  Kind kind = Kind::kPacked;
  int64_t bits = 4;                        ///< of codes; but of exact ones
  int64_t group_rows = kDefaultGroupRows;  ///< of columns: 64, 128 or 256
  FusedActivation activation = {};         ///< of a pass's copy, whose masks are beside the codes

  int parts() const { return kind == Kind::kPass ? 2 : 1; }
};

/// A copy of an input that somebody else packed; a run is given its tensors.
struct Import {
  Value input;
  CopyFormat format;
};

/// With fewer bits of query and key the gradients of attention are biased (docs/accuracy.md).
inline constexpr int64_t kAttentionBits = 6;

struct PlanOptions {
  int64_t bits = 4;         ///< of copies, 2..8; the side of a ReLU is one of them
  int64_t output_bits = 4;  ///< of copies of sums, 2..8
  /// Of copies that backward computes a smooth activation and its derivative from, 2..8.
  int64_t smooth_bits = kSmoothBits;
  /// Of copies of query, key and value that attention is computed again from, 5..8; 0: they are kept exactly, and so is
  /// its result.
  int64_t attention_bits = kAttentionBits;
  /// Query, key and value are computed again in backward, by the products that made them, from a copy of what these
  /// read that has `attention_bits`; not where that is an input of the program.
  bool recompute_attention = false;
  /// What smooth activations and their gates are computed from is computed again likewise, from a copy that has
  /// `smooth_bits`.
  bool recompute_mlp = false;
  int64_t group_rows = kDefaultGroupRows;  ///< of copies in column groups: 64, 128 or 256
  /// Norms in front of a sum: their input is computed again in backward, by the convolution that made it, instead of
  /// saved. Copies of 2 bits are too coarse for that, and the norm saves a copy of its own then.
  bool recompute = true;
  int64_t norm_bits = 3;  ///< of copies of the normalized inputs of such norms, 1..8, where they are saved
  Rounding rounding = Rounding::kDithered;  ///< of copies; nearest biases them
  /// Other numbers of bits for what is saved of single values.
  std::map<Value, int64_t> value_bits = {};
  /// Values whose copies are the values themselves, because they are small.
  std::set<Value> exact = {};

  /// Copies of so many bits, and what goes with them: the copy of a smooth activation has `kSmoothBits` or more, those
  /// of attention `kAttentionBits` or more, a normalized input one bit fewer. Two fewer would be most of a deep
  /// network's noise (docs/accuracy.md).
  static PlanOptions of_bits(int64_t bits);

  /// The bits of what is saved of a value.
  int64_t bits_of(Value value, int64_t otherwise) const;
};

/// A pass that computes several steps, or one in another way.
struct Fusion {
  std::string name;
  std::vector<size_t> steps;  ///< numbers of the program's steps
};

struct Plan {
  Program program;
  PlanOptions options;
  /// In the order they run in: the program's steps, or passes over memory that compute several of them.
  std::vector<StepPointer> stages;
  std::vector<Fusion> fusions;
  std::vector<Layout> layouts;              ///< of values
  std::map<Value, CopyFormat> copies = {};  ///< saved if a run needs them
  std::set<Value> recomputes = {};          ///< values whose copies are computed from those of others
  /// What else is saved as a copy if a run needs it: normalized values, derivatives.
  std::map<std::pair<Value, Form>, CopyFormat> saves = {};
  /// Other dtypes that products cast norms' outputs to, under autocast.
  std::map<Value, c10::ScalarType> second_dtypes = {};
  std::vector<Import> imports = {};
  std::vector<Value> exports = {};  ///< values whose copies a run returns
  std::string name = {};            ///< of the block, for those who measure it

  /// Whether somebody else packed the copy of an input.
  bool imports_copy_of(Value value) const;
  /// Of what a step saves of its output besides a copy.
  CopyFormat saved_format(Value output) const;
};

/// Throws c10::ValueError for bits out of range, and as `check_program`.
Plan make_plan(Program program, const PlanOptions& options = {}, std::vector<Import> imports = {});

/// Throws c10::ValueError, with a sentence, unless backward finds all that it needs: for each value that a stage reads
/// a copy of, one is saved, imported, or computed by a step that keeps copies unbiased, of copies that are there.
void check_plan(const Plan& plan);

/// {"saves": [{"value": 3, "form": "copy", "bits": 4, "step": 1}], "recomputes": [2], "fusions": [{"name": "norm_act",
/// "steps": [1, 2]}], "copies": {"3": {"copy": {...}, "tensors": 2, "layout": "plain"}}}, with all gradients wanted.
/// `copies`: of inputs and results, for exports; programs in which the value has another layout cannot have them.
std::string to_json(const Plan& plan);

/// {"program": {...}, "options": {...}, "imports": [{"input": 0, "copy": {...}}], "exports": [3], "name": "layer1.0"};
/// all but the program may be left out. Throws c10::ValueError as `make_plan`, and for unknown keys.
Plan plan_from_json(const std::string& text);

}  // namespace actnn::blocks
