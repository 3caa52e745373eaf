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
    show_views();
    std::vector<Layout> layouts;
    for (const std::optional<Layout>& layout : known_) {
      layouts.push_back(layout.value_or(Layout::kPlain));
    }
    return layouts;
  }

 private:
  void set_by_rule(const Step& step) {
    if (step.layout_rule() == LayoutRule::kElementwise || step.layout_rule() == LayoutRule::kView) {
      return;
    }
    const Layout layout = step.layout_rule() == LayoutRule::kChannels ? Layout::kChannels
                          : step.layout_rule() == LayoutRule::kHeads  ? Layout::kHeads
                                                                      : Layout::kPlain;
    for (const Value output : step.outputs) {
      known_[output.number] = layout;
    }
    const size_t inputs = layout == Layout::kChannels ? step.inputs.size()
                          : layout == Layout::kHeads  ? std::min<size_t>(step.inputs.size(), 3)
                                                      : 0;
    for (size_t place = 0; place < inputs; ++place) {
      std::optional<Layout>& known = known_[step.inputs[place].number];
      known = known.value_or(layout);
    }
  }

  /// Views that views alone read keep the strides that they have.
  void show_views() {
    std::vector<bool> is_shown(known_.size(), false);
    for (const StepPointer& step : program_.steps) {
      for (const Value output : step->outputs) {
        is_shown[output.number] = step->is_view() && known_[output.number].value_or(Layout::kPlain) == Layout::kPlain;
      }
    }
    for (const StepPointer& step : program_.steps) {
      for (const Value input : step->inputs) {
        is_shown[input.number] = is_shown[input.number] && step->is_view();
      }
    }
    for (const Value result : program_.results) {
      is_shown[result.number] = false;
    }
    for (size_t number = 0; number < known_.size(); ++number) {
      known_[number] = is_shown[number] ? Layout::kStrided : known_[number];
    }
  }

  /// One layout for the values of each elementwise step, if one of them has one. Whether that changed anything.
  bool spread() {
    bool changed = false;
    for (const StepPointer& step : program_.steps) {
      if (step->layout_rule() != LayoutRule::kElementwise) {
        continue;
      }
      const std::vector<Value> values = step->stored_alike();
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
