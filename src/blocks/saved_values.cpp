#include "src/blocks/saved_values.h"

#include <algorithm>
#include <map>
#include <set>

#include "src/autograd/saved_activation.h"
#include "src/blocks/fusions/fusion.h"
#include "src/blocks/fusions/gated_activation.h"
#include "src/blocks/fusions/kept_input.h"
#include "src/blocks/fusions/norm_act.h"
#include "src/blocks/steps/attention.h"

namespace actnn::blocks {
namespace {

/// The values that products which are computed again read, and those that these are computed of.
std::set<Value> read_by_products(const Plan& plan, const Schedule& schedule) {
  std::set<Value> read;
  const auto add_inputs = [&](const Step& step) { read.insert(step.inputs.begin(), step.inputs.end()); };
  // From the last to the first: what makes a value stands in front of those that read it.
  for (auto value = plan.recomputes.rbegin(); value != plan.recomputes.rend(); ++value) {
    const Step& step = *schedule.makers[value->number];
    if (!step.copies_from_saved(*value) && (step.is_product() || read.contains(*value))) {
      add_inputs(step);
    }
  }
  return read;
}

/// The fewest bits of values' copies that backward computes something from which is not linear.
std::map<Value, int64_t> fewest_bits(const Plan& plan, const Schedule& schedule) {
  std::map<Value, int64_t> fewest;
  const auto set = [&](const std::vector<Value>& values, int64_t bits) {
    for (const Value value : values) {
      fewest[value] = std::max(fewest[value], bits);
    }
  };
  for (const StepPointer& stage : plan.stages) {
    if (dynamic_cast<const KeptInputActivation*>(stage.get()) != nullptr) {
      set(stage->inputs, kFewestSmoothBits);
    } else if (const auto* gated = dynamic_cast<const GatedActivation*>(stage.get())) {
      set({gated->inputs[0]}, kFewestSmoothBits);
    } else if (const auto* attention = dynamic_cast<const Attention*>(stage.get());
               attention != nullptr && attention->copy_bits != 0) {
      set({attention->inputs.begin(), attention->inputs.begin() + 3}, kFewestAttentionBits);
    }
  }
  for (auto value = plan.recomputes.rbegin(); value != plan.recomputes.rend(); ++value) {
    const Step& step = *schedule.makers[value->number];
    if ((step.is_view() || step.is_product()) && fewest.contains(*value)) {
      set(step.inputs, fewest[*value]);
    } else if (fewest.contains(*value) && !step.copies_from_saved(*value)) {
      set(step.copies_to_recompute(), fewest[*value]);
    }
  }
  return fewest;
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
  const std::map<Value, int64_t> fewest = fewest_bits(plan, schedule);
  std::vector<SavedValue> values;
  for (const auto& [key, slot] : schedule.slots) {
    const auto& [value, form] = key;
    SavedValue saved{.tensor = slot.first,
                     .value = value,
                     .named = value,
                     .bits = 0,
                     .fewest = fewest.contains(value)     ? fewest.at(value)
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
