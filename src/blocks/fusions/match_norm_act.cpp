#include <algorithm>
#include <set>
#include <utility>

#include "src/blocks/fusions/fusion.h"
#include "src/blocks/fusions/kept_input.h"
#include "src/blocks/fusions/norm_act.h"
#include "src/blocks/steps/activation.h"
#include "src/blocks/steps/add.h"
#include "src/blocks/steps/convolution.h"

namespace actnn::blocks {
namespace {

class Matcher {
 public:
  explicit Matcher(const Window& window) : window_(window), summed_by_(window.program.steps.size()) {
    for (size_t step = 0; step < window.program.steps.size(); ++step) {
      find_summand(step);
    }
  }

  std::vector<FusedPass> passes() {
    for (size_t number = 0; number < window_.program.steps.size(); ++number) {
      const Step& step = *window_.program.steps[number];
      if (taken_.contains(number) || window_.layouts[step.output().number] != Layout::kChannels) {
        continue;
      }
      if (const auto* norm = dynamic_cast<const BatchNorm*>(&step); norm != nullptr && !summed_by_[number]) {
        add_norm(*norm, number);
      } else if (const auto* sum = dynamic_cast<const Add*>(&step); sum != nullptr && !sum->broadcast) {
        add_sum(*sum, number);
      } else if (const auto* activation = dynamic_cast<const Activation*>(&step)) {
        add_activation(*activation, number);
      }
    }
    return std::move(passes_);
  }

 private:
  /// The norm of a sum that is part of its pass: the later one, whose pass can read the other summand.
  void find_summand(size_t step) {
    const auto* sum = dynamic_cast<const Add*>(window_.program.steps[step].get());
    if (sum == nullptr || sum->broadcast || window_.layouts[sum->output().number] != Layout::kChannels) {
      return;
    }
    const Value later = std::max(sum->inputs[0], sum->inputs[1]);
    const Value earlier = std::min(sum->inputs[0], sum->inputs[1]);
    for (const Value summand : {later, earlier}) {
      const auto* norm = window_.made_by<BatchNorm>(summand);
      if (norm != nullptr && window_.sole_reader(summand) &&
          window_.have_one_dtype({norm->inputs[0], later, earlier, sum->output()})) {
        summed_by_[*window_.maker(summand)] = step;
        return;
      }
    }
  }

  void add_norm(const BatchNorm& norm, size_t number) {
    NormAct pass;
    pass.inputs = norm.inputs;
    pass.norm = norm;
    add(pass, {number}, norm.output());
  }

  void add_sum(const Add& sum, size_t number) {
    NormAct pass;
    pass.has_residual = true;
    const auto summed = std::find(summed_by_.begin(), summed_by_.end(), std::optional(number));
    if (summed == summed_by_.end()) {
      if (!window_.have_one_dtype({sum.inputs[0], sum.inputs[1], sum.output()})) {
        return;
      }
      pass.inputs = sum.inputs;
      add(pass, {number}, sum.output());
      return;
    }
    const size_t norm_number = summed - summed_by_.begin();
    const auto& norm = dynamic_cast<const BatchNorm&>(*window_.program.steps[norm_number]);
    pass.norm = norm;
    pass.inputs = {norm.inputs[0], norm.output() == sum.inputs[0] ? sum.inputs[1] : sum.inputs[0]};
    if (!can_recompute(norm)) {
      pass.norm_bits = window_.options.bits_of(norm.output(), window_.options.norm_bits);
    }
    add(pass, {norm_number, number}, sum.output());
  }

  void add_activation(const Activation& activation, size_t number) {
    const std::optional<FusedActivation> fused = fused_activation(activation);
    const bool is_small = window_.options.exact.contains(activation.output());
    if (!is_small && fused && fused->function == ActivationFunction::kLeakyReLU &&
        window_.have_one_dtype({activation.inputs[0], activation.output()})) {
      NormAct pass;
      pass.inputs = activation.inputs;
      pass.activation = *fused;
      add(pass, {number}, activation.output());
    }
  }

  /// An activation as the pass has it; of a slope of 1 nothing is left.
  static std::optional<FusedActivation> fused_activation(const Activation& activation) {
    const auto slope = static_cast<float>(activation.slope);
    switch (activation.kind) {
      case ActivationKind::kReLU:
        return FusedActivation{ActivationFunction::kLeakyReLU, 0.0F};
      case ActivationKind::kLeakyReLU:
        return slope == 1.0F ? FusedActivation{} : FusedActivation{ActivationFunction::kLeakyReLU, slope};
      case ActivationKind::kReLU6:
        return FusedActivation{ActivationFunction::kReLU6};
      case ActivationKind::kSiLU:
        return FusedActivation{ActivationFunction::kSiLU};
      case ActivationKind::kHardswish:
        return FusedActivation{ActivationFunction::kHardswish};
      default:
        return std::nullopt;
    }
  }

  static bool has_activation(const NormAct& pass) { return pass.activation.function != ActivationFunction::kIdentity; }

  /// The activation behind a pass becomes part of it. One with more than two slopes needs a norm in the pass, and
  /// nothing else.
  void add_activation_behind(NormAct& pass, std::vector<size_t>& steps, Value& output) const {
    const auto* activation = window_.sole_reader_as<Activation>(output);
    if (activation == nullptr || has_activation(pass) || !window_.have_one_dtype({output, activation->output()})) {
      return;
    }
    const std::optional<FusedActivation> behind = fused_activation(*activation);
    const bool has_two_slopes = behind && (behind->function == ActivationFunction::kLeakyReLU ||
                                           behind->function == ActivationFunction::kIdentity);
    const bool fits = behind && (behind->function == ActivationFunction::kReLU6 ? pass.norm && !pass.norm_bits
                                                                                : pass.norm && !pass.has_residual);
    if (has_two_slopes || fits) {
      steps.push_back(*window_.sole_reader(output));
      output = activation->output();
      pass.activation = *behind;
    }
  }

  /// The pass with the activation behind it, and what it packs.
  void add(NormAct pass, std::vector<size_t> steps, Value output) {
    const size_t place = steps.back();
    if (!pass.norm || window_.have_one_dtype({pass.inputs[0], output})) {
      add_activation_behind(pass, steps, output);
    }
    const PlanOptions& options = window_.options;
    pass.outputs = {output};
    const bool is_summand =
        pass.norm && !pass.has_residual && !has_activation(pass) && window_.sole_reader_as<Add>(output) != nullptr;
    pass.recompute = pass.norm && (pass.has_residual || is_summand) && can_recompute(*pass.norm);
    if (has_activation(pass) || (pass.norm && !pass.has_residual && !pass.recompute)) {
      const ActivationFunction function = pass.activation.function;
      const bool is_output = pass.has_residual || is_summand;
      const int64_t bits =
          options.bits_of(output, is_smooth(function) || is_read_by_smooth(output) ? options.smooth_bits
                                  : is_output                                      ? options.output_bits
                                                                                   : options.bits);
      // The side of a kink is one of the bits.
      pass.bits = has_kink(function) ? bits - 1 : bits;
      copy_bits_[output] = bits;
    }
    taken_.insert(steps.begin(), steps.end());
    passes_.push_back({std::make_shared<NormAct>(std::move(pass)), std::move(steps), place});
  }

  /// Whether backward computes an activation that is no part of the pass from the copy of its output.
  bool is_read_by_smooth(Value output) const {
    return std::any_of(window_.program.steps.begin(), window_.program.steps.end(), [&](const StepPointer& step) {
      const auto* activation = dynamic_cast<const Activation*>(step.get());
      return activation != nullptr && activation->inputs[0] == output && is_smooth(activation->kind);
    });
  }

  /// Whether a convolution makes the norm's input, for it alone, of a value with a copy that is fine enough. Not of an
  /// input of the program: its copy is somebody else's, of whatever bits.
  bool can_recompute(const BatchNorm& norm) const {
    const Value made = norm.inputs[0];
    if (!window_.options.recompute || made.number < window_.program.inputs || !window_.sole_reader(made)) {
      return false;
    }
    const auto* convolution = window_.made_by<Convolution>(made);
    if (convolution == nullptr || convolution->inputs[0].number < window_.program.inputs) {
      return false;
    }
    const auto copy = copy_bits_.find(convolution->inputs[0]);
    return (copy == copy_bits_.end() ? window_.options.bits_of(convolution->inputs[0], window_.options.bits)
                                     : copy->second) >= kFewestRecomputeBits;
  }

  const Window& window_;
  std::vector<std::optional<size_t>> summed_by_;  // of norms: the addition whose pass has it
  std::set<size_t> taken_;
  std::map<Value, int64_t> copy_bits_;  // of the copies that passes pack, the side among them
  std::vector<FusedPass> passes_;
};

}  // namespace

std::vector<FusedPass> find_norm_act_passes(const Window& window) { return Matcher(window).passes(); }

}  // namespace actnn::blocks
