#include "src/blocks/saved_values.h"

#include <algorithm>
#include <set>

#include "src/autograd/saved_activation.h"
#include "src/blocks/fusions/fusion.h"
#include "src/blocks/fusions/kept_input.h"
#include "src/blocks/fusions/norm_act.h"

namespace actnn::blocks {
namespace {

/// The values that products which are computed again read, and those that these are computed of.
std::set<Value> read_by_products(const Plan& plan, const Schedule& schedule) {
  std::set<Value> read;
  const auto add_inputs = [&](const Step& step) { read.insert(step.inputs.begin(), step.inputs.end()); };
  // From the last to the first: what makes a value stands in front of those that read it.
  for (auto value = plan.recomputes.rbegin(); value != plan.recomputes.rend(); ++value) {
    const Step& step = *schedule.makers[value->number];
    if (!step.copies_from_saved() && (step.is_product() || read.contains(*value))) {
      add_inputs(step);
    }
  }
  return read;
}

/// Values whose copies smooth activations are computed from.
std::set<Value> read_by_smooth(const Plan& plan, const Schedule& schedule) {
  std::set<Value> read;
  for (const StepPointer& stage : plan.stages) {
    if (dynamic_cast<const KeptInputActivation*>(stage.get()) != nullptr) {
      read.insert(stage->inputs.begin(), stage->inputs.end());
    }
  }
  for (auto value = plan.recomputes.rbegin(); value != plan.recomputes.rend(); ++value) {
    const Step& step = *schedule.makers[value->number];
    if (step.is_view() && read.contains(*value)) {
      read.insert(step.inputs.begin(), step.inputs.end());
    }
  }
  return read;
}

/// The value that a normalized copy beside a sum has its bits from is the norm's, which the pass does not make.
Value normalized_by(const Plan& plan, Value output) {
  for (const StepPointer& stage : plan.stages) {
    const auto* fused = dynamic_cast<const NormAct*>(stage.get());
    if (fused != nullptr && fused->output() == output && fused->norm && fused->norm_bits) {
      return fused->norm->output();
    }
  }
  return output;
}

}  // namespace

std::vector<SavedValue> saved_values(const Plan& plan, const Schedule& schedule) {
  const std::set<Value> products = read_by_products(plan, schedule);
  const std::set<Value> smooth = read_by_smooth(plan, schedule);
  std::vector<SavedValue> values;
  for (const auto& [key, slot] : schedule.slots) {
    const auto& [value, form] = key;
    SavedValue saved{.tensor = slot.first,
                     .value = value,
                     .named = value,
                     .bits = 0,
                     .fewest = smooth.contains(value)     ? kFewestSmoothBits
                               : products.contains(value) ? kFewestRecomputeBits
                                                          : kFewestCopyBits};
    if (form == Form::kCopy) {
      const CopyFormat& format = plan.copies.at(value);
      if (format.kind == CopyFormat::Kind::kExact) {
        continue;
      }
      if (format.kind == CopyFormat::Kind::kPass) {
        saved.side = has_kink(format.activation.function) ? 1 : 0;
        saved.fewest =
            std::max(saved.fewest, is_smooth(format.activation.function) ? kFewestSmoothBits : kFewestCopyBits);
      }
      saved.bits = format.bits + saved.side;
    } else if (const auto format = plan.saves.find(key); format != plan.saves.end()) {
      saved.bits = format->second.bits;
      saved.named = form == Form::kNormalized ? normalized_by(plan, value) : value;
    } else {
      continue;
    }
    values.push_back(saved);
  }
  return values;
}

}  // namespace actnn::blocks
