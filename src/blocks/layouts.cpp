#include "src/blocks/layouts.h"

#include <algorithm>
#include <optional>

#include "src/blocks/step.h"

namespace actnn::blocks {
namespace {

class Layouts {
 public:
  explicit Layouts(const Program& program) : program_(program), known_(program.values()) {}

  std::vector<Layout> infer() {
    for (const StepPointer& step : program_.steps) {
      set_by_rule(*step);
    }
    while (spread()) {
    }
    std::vector<Layout> layouts;
    for (const std::optional<Layout>& layout : known_) {
      layouts.push_back(layout.value_or(Layout::kPlain));
    }
    return layouts;
  }

 private:
  void set_by_rule(const Step& step) {
    if (step.layout_rule() == LayoutRule::kElementwise) {
      return;
    }
    const bool channels = step.layout_rule() == LayoutRule::kChannels;
    for (const Value output : step.outputs) {
      known_[output.number] = channels ? Layout::kChannels : Layout::kPlain;
    }
    for (const Value input : step.inputs) {
      if (channels && !known_[input.number]) {
        known_[input.number] = Layout::kChannels;
      }
    }
  }

  /// One layout for the values of each elementwise step, if one of them has one. Whether that changed anything.
  bool spread() {
    bool changed = false;
    for (const StepPointer& step : program_.steps) {
      if (step->layout_rule() != LayoutRule::kElementwise) {
        continue;
      }
      std::vector<Value> values = step->inputs;
      values.insert(values.end(), step->outputs.begin(), step->outputs.end());
      const auto is_known = [&](Value value) { return known_[value.number].has_value(); };
      const auto found = std::find_if(values.begin(), values.end(), is_known);
      if (found == values.end()) {
        continue;
      }
      const Layout layout = *known_[found->number];
      for (const Value value : values) {
        changed = changed || !is_known(value);
        known_[value.number] = known_[value.number].value_or(layout);
      }
    }
    return changed;
  }

  const Program& program_;
  std::vector<std::optional<Layout>> known_;
};

}  // namespace

std::vector<Layout> infer_layouts(const Program& program) { return Layouts(program).infer(); }

}  // namespace actnn::blocks
