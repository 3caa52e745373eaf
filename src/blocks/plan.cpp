#include "actnn/blocks/plan.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "actnn/core/bit_packing.h"
#include "actnn/core/sign_split.h"

namespace actnn::blocks {
namespace {

/// The fewest bits of a copy that a convolution may be computed again from: its noise is in both factors of a weight's gradient then.
constexpr int64_t kFewestRecomputeBits = 3;

/// The slope of an activation below 0, and its function.
struct PassActivation {
  double slope;
  ActivationFunction function;

  explicit PassActivation(const Activation& activation)
      : slope(activation.kind == ActivationKind::kReLU || activation.kind == ActivationKind::kReLU6 ? 0.0
              : activation.kind == ActivationKind::kLeakyReLU                                       ? activation.slope
                                                                                                    : 1.0),
        function(function_of(activation.kind)) {}

  /// Whether two slopes describe it.
  bool has_two_slopes() const { return function == ActivationFunction::kLeakyReLU; }

 private:
  static ActivationFunction function_of(ActivationKind kind) {
    switch (kind) {
      case ActivationKind::kReLU6:
        return ActivationFunction::kReLU6;
      case ActivationKind::kSiLU:
        return ActivationFunction::kSiLU;
      case ActivationKind::kHardswish:
        return ActivationFunction::kHardswish;
      default:
        return ActivationFunction::kLeakyReLU;
    }
  }
};

class Planner {
 public:
  Planner(Program program, const PlanOptions& options)
      : plan_{.program = std::move(program), .options = options, .stages = {}, .packed_values = {}},
        program_(plan_.program),
        readers_(program_.values()),
        in_stage_of_(program_.steps.size()) {
    for (size_t step = 0; step < program_.steps.size(); ++step) {
      for (const Value value : operands(program_.steps[step])) {
        readers_[value].push_back(step);
      }
      norm_numbers_.push_back(norms_);
      norms_ += std::holds_alternative<BatchNorm>(program_.steps[step]) ? 1 : 0;
    }
  }

  Plan plan() {
    fuse_sums();
    for (size_t step = 0; step < program_.steps.size(); ++step) {
      if (!in_stage_of_[step]) {
        std::visit([&](const auto& layer) { add_stage(layer, value_of(step)); }, program_.steps[step]);
      }
    }
    return std::move(plan_);
  }

 private:
  Value value_of(size_t step) const { return program_.inputs + static_cast<Value>(step); }

  /// The step that alone reads `value`, if there is one and the value is not the result.
  std::optional<size_t> sole_reader(Value value) const {
    const bool is_sole = readers_[value].size() == 1 && value != program_.output();
    return is_sole ? std::optional(readers_[value].front()) : std::nullopt;
  }

  const BatchNorm* norm_of(Value value) const {
    return value < program_.inputs ? nullptr : std::get_if<BatchNorm>(&program_.step_of(value));
  }

  /// The norm of each sum that is part of its pass: the later one, whose pass can read the other summand.
  void fuse_sums() {
    for (size_t step = 0; step < program_.steps.size(); ++step) {
      if (const auto* sum = std::get_if<Add>(&program_.steps[step])) {
        const Value later = std::max(sum->first, sum->second);
        const Value earlier = std::min(sum->first, sum->second);
        const Value summand = norm_of(later) && sole_reader(later) ? later : earlier;
        if (norm_of(summand) && sole_reader(summand)) {
          in_stage_of_[summand - program_.inputs] = step;
        }
      }
    }
  }

  int64_t bits_of(Value value, int64_t otherwise) const {
    const auto own = plan_.options.value_bits.find(value);
    return own == plan_.options.value_bits.end() ? otherwise : own->second;
  }

  /// Bits of the copy of a value that is there already, in stage order: of no smooth activation, whose pass has none of the output.
  int64_t copy_bits(Value value) const {
    for (const Stage& stage : plan_.stages) {
      const auto* pass = std::get_if<NormActStage>(&stage);
      if (pass != nullptr && pass->output == value && gives_output(pass->derivative.function)) {
        return pass->bits;
      }
    }
    return 0;
  }

  void add_stage(const Convolution& convolution, Value output) {
    if (copy_bits(convolution.input) == 0) {
      plan_.packed_values[convolution.input] = bits_of(convolution.input, plan_.options.bits);
    }
    plan_.stages.emplace_back(ConvolutionStage{convolution, output});
  }

  void add_stage(const BatchNorm& norm, Value output) {
    NormActStage pass{.input = norm.input, .norm = norm, .norm_number = norm_numbers_[output - program_.inputs]};
    add_pass(pass, output);
  }

  void add_stage(const Add& sum, Value output) {
    const size_t step = output - program_.inputs;
    const auto fused = std::find(in_stage_of_.begin(), in_stage_of_.end(), std::optional(step));
    if (fused == in_stage_of_.end()) {
      add_pass({.input = sum.first, .residual = sum.second}, output);
      return;
    }
    const Value summand = value_of(fused - in_stage_of_.begin());
    const BatchNorm& norm = *norm_of(summand);
    NormActStage pass{.input = norm.input,
                      .norm = norm,
                      .norm_number = norm_numbers_[summand - program_.inputs],
                      .residual = summand == sum.first ? sum.second : sum.first};
    if (!can_recompute(norm)) {
      pass.norm_bits = std::min<int64_t>(bits_of(summand, plan_.options.norm_bits), kMostNormalizedBits);
    }
    add_pass(pass, output);
  }

  void add_stage(const Activation& activation, Value output) {
    const PassActivation of_pass(activation);
    if (of_pass.has_two_slopes()) {
      add_pass({.input = activation.input, .slope = of_pass.slope}, output);
    } else {
      const bool is_mask = activation.kind == ActivationKind::kReLU6;
      plan_.stages.emplace_back(ActivationStage{activation, output, is_mask ? 0 : bits_of(output, plan_.options.bits)});
    }
  }

  void add_stage(const MaxPool& pool, Value output) { plan_.stages.emplace_back(MaxPoolStage{pool, output}); }

  /// The activation behind a pass that becomes part of it. What has derivatives needs a norm in the pass, and no second packing.
  std::optional<PassActivation> activation_behind(const NormActStage& pass, Value output) const {
    const std::optional<size_t> reader = sole_reader(output);
    const auto* activation = reader ? std::get_if<Activation>(&program_.steps[*reader]) : nullptr;
    if (activation == nullptr || pass.has_activation()) {
      return std::nullopt;
    }
    const PassActivation behind(*activation);
    return behind.has_two_slopes() || (pass.norm && pass.norm_bits == 0) ? std::optional(behind) : std::nullopt;
  }

  /// The pass with the activation behind it, and what it packs.
  void add_pass(NormActStage pass, Value output) {
    pass.output = output;
    if (const std::optional<PassActivation> activation = activation_behind(pass, output)) {
      const size_t reader = *sole_reader(output);
      in_stage_of_[reader] = reader;
      pass.output = value_of(reader);
      pass.slope = activation->slope;
      pass.derivative.function = activation->function;
    }
    const bool is_summand = pass.norm && !pass.residual && !pass.has_activation() && feeds_sum(pass.output);
    pass.recompute = pass.norm && (pass.residual || is_summand) && can_recompute(*pass.norm);
    if (pass.slope != 1.0 || (pass.norm && !pass.residual && !pass.recompute)) {
      const bool is_output = pass.residual || is_summand;
      const Value copied = gives_output(pass.derivative.function) ? pass.output : output;
      pass.bits = bits_of(copied, is_output ? plan_.options.output_bits : plan_.options.bits);
    }
    if (pass.derivative.function == ActivationFunction::kReLU6) {
      pass.derivative.bits = 1;
    } else if (pass.derivative.function != ActivationFunction::kLeakyReLU) {
      const int64_t bits = bits_of(pass.output, plan_.options.bits);
      pass.derivative.bits = static_cast<int>(std::min<int64_t>(bits, kMostDerivativeBits));
    }
    plan_.stages.emplace_back(pass);
  }

  bool feeds_sum(Value value) const {
    const std::optional<size_t> reader = sole_reader(value);
    return reader && std::holds_alternative<Add>(program_.steps[*reader]);
  }

  /// Whether a convolution makes the norm's input, for it alone, of a value with a copy that is fine enough. Not of an input of
  /// the program: its copy is somebody else's, of whatever bits.
  bool can_recompute(const BatchNorm& norm) const {
    if (!plan_.options.recompute || norm.input < program_.inputs || !sole_reader(norm.input)) {
      return false;
    }
    const auto* convolution = std::get_if<Convolution>(&program_.step_of(norm.input));
    if (convolution == nullptr || convolution->input < program_.inputs) {
      return false;
    }
    const auto packed = plan_.packed_values.find(convolution->input);
    return (packed == plan_.packed_values.end() ? copy_bits(convolution->input) : packed->second) >=
           kFewestRecomputeBits;
  }

  Plan plan_;
  const Program& program_;
  std::vector<std::vector<size_t>> readers_;
  /// Steps that belong to the stage of a later step, or of an earlier one that has been planned.
  std::vector<std::optional<size_t>> in_stage_of_;
  std::vector<size_t> norm_numbers_;
  size_t norms_ = 0;
};

void check_split_bits(const char* name, int64_t bits) {
  TORCH_CHECK_VALUE(bits >= kMinSplitBits && bits <= kMaxBits, "block: ", name, " must be in 2..8, got ", bits);
}

}  // namespace

Plan make_plan(Program program, const PlanOptions& options) {
  check_program(program);
  check_split_bits("bits", options.bits);
  check_split_bits("output_bits", options.output_bits);
  TORCH_CHECK_VALUE(options.norm_bits >= kMinSplitBits && options.norm_bits <= kMostNormalizedBits,
                    "block: norm_bits must be in 2..7, got ", options.norm_bits);
  for (const auto& [value, bits] : options.value_bits) {
    TORCH_CHECK_VALUE(value >= 0 && value < program.values(), "block: value_bits must name values in 0..",
                      program.values() - 1, ", got ", value);
    check_split_bits("value_bits", bits);
  }
  return Planner(std::move(program), options).plan();
}

}  // namespace actnn::blocks
