#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "actnn/blocks/program.h"
#include "actnn/core/activation.h"

/// \file
/// How a program is run: which steps are one pass over memory, and what is kept of each value for backward. A plan is data: it
/// can be printed, and changed before a block is made of it.

namespace actnn::blocks {

struct PlanOptions {
  int64_t bits = 4;         ///< of copies, 2..8
  int64_t output_bits = 4;  ///< of copies of sums, 2..8
  /// Norms in front of a sum: their input is computed again in backward, by the convolution that made it, instead of kept. Copies of 2
  /// bits are too coarse for that, and the norm keeps a copy of its own then.
  bool recompute = true;
  int64_t norm_bits = 2;   ///< of copies of the normalized inputs of such norms, 2..7, where they are kept
  bool stochastic = true;  ///< false: copies are rounded to nearest, and biased
  /// Other numbers of bits for copies of single values.
  std::map<Value, int64_t> value_bits = {};
};

/// Normalization, residual addition and activation in one pass (ops/norm_act.h); each of the three may be absent, but an activation that
/// is not linear on two sides of 0 comes with a norm.
struct NormActStage {
  Value input = 0;
  std::optional<BatchNorm> norm = std::nullopt;
  size_t norm_number = 0;  ///< among the program's norms
  std::optional<Value> residual = std::nullopt;
  double slope = 1.0;  ///< below 0: 0 for ReLU and ReLU6, 1 for no activation and for SiLU and hardswish
  Value output = 0;
  int64_t bits = 0;        ///< of the copy that the pass packs, of the output or, for SiLU and hardswish, of the norm's
  bool recompute = false;  ///< the norm's input is computed again in backward
  int64_t norm_bits = 0;   ///< of the copy of the normalized input that the pass packs beside that of its sum
  PackedDerivative derivative = {};  ///< of ReLU6, SiLU and hardswish, which the pass packs too

  bool has_activation() const { return slope != 1.0 || derivative.function != ActivationFunction::kLeakyReLU; }
};

struct ConvolutionStage {
  Convolution convolution;
  Value output = 0;
};

/// An activation that is not linear on two sides of 0, behind no norm: its derivative is kept.
struct ActivationStage {
  Activation activation;
  Value output = 0;
  int64_t bits = 0;  ///< of the derivative; 0: one bit, exact
};

struct MaxPoolStage {
  MaxPool pool;
  Value output = 0;
};

using Stage = std::variant<ConvolutionStage, NormActStage, ActivationStage, MaxPoolStage>;

struct Plan {
  Program program;
  PlanOptions options;
  std::vector<Stage> stages;
  /// Bits of values that convolutions read and no pass packs: inputs, for example.
  std::map<Value, int64_t> packed_values;
};

/// Throws c10::ValueError for bits outside 2..8, and as `check_program`.
Plan make_plan(Program program, const PlanOptions& options = {});

/// {"bits": 4, "output_bits": 3, "recompute": true, "norm_bits": 2, "stochastic": true, "value_bits": {"3": 2}}; all may be left out.
PlanOptions plan_options_from_json(const std::string& json);

/// What is done and kept, as JSON: a list of stages {"stage", "inputs", "output", "keeps", "bits"}.
std::string to_json(const Plan& plan);

}  // namespace actnn::blocks
