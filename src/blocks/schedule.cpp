#include "src/blocks/schedule.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <iterator>

#include "src/blocks/indices.h"

namespace actnn::blocks {
namespace {

class Scheduler : public Wants {
 public:
  Scheduler(const Plan& plan, const std::vector<bool>& wanted)
      : plan_(plan),
        schedule_{.makers = std::vector<const Step*>(plan.program.values()),
                  .wanted_values = wanted_values(plan, wanted),
                  .wanted_parameters = {wanted.begin() + plan.program.inputs, wanted.end()}} {
    schedule_.last_reader.assign(plan.program.values(), plan.stages.size());
  }

  bool wants(Value value) const override { return schedule_.wanted_values[value.number]; }
  bool wants(ParameterIndex index) const override { return schedule_.wanted_parameters[index.number]; }

  Schedule schedule(bool exports) {
    for (const StepPointer& stage : plan_.stages) {
      for (const Value output : stage->outputs) {
        schedule_.makers[output.number] = stage.get();
      }
    }
    for (stage_ = 0; stage_ < plan_.stages.size(); ++stage_) {
      add_stage(*plan_.stages[stage_]);
    }
    for (const Value result : plan_.program.results) {
      schedule_.last_reader[result.number] = plan_.stages.size();
    }
    if (exports) {
      for (const Value value : plan_.exports) {
        need_copy(value);
      }
    }
    return std::move(schedule_);
  }

 private:
  void add_stage(const Step& stage) {
    for (const auto* values : {&stage.inputs, &stage.outputs}) {
      for (const Value value : *values) {
        schedule_.last_reader[value.number] = stage_;
      }
    }
    if (wants(stage.output())) {
      for (const Need& need : stage.needs(*this)) {
        add(need);
      }
    }
  }

  void add(const Need& need) {
    if (need.form == Form::kCopy) {
      need_copy(need.value);
    } else {
      add_slot(need.value, need.form, need.parts);
    }
  }

  void add_slot(Value value, Form form, size_t parts) {
    if (schedule_.slots.emplace(std::pair(value, form), Schedule::Slot{schedule_.saved_tensors, parts}).second) {
      schedule_.saved_tensors += parts;
    }
  }

  /// A copy that the present stage reads.
  void need_copy(Value value) {
    if (stage_ < plan_.stages.size()) {
      schedule_.first_copy_reader.emplace(value, stage_);
    }
    if (plan_.imports_copy_of(value)) {
      return;
    }
    if (plan_.recomputes.contains(value)) {
      const Step* const maker = schedule_.makers[value.number];
      TORCH_CHECK_VALUE(maker != nullptr, "block: value ", value.number,
                        " cannot be computed again, for no step makes it");
      const Step& step = *maker;
      check_unbiased(step, value);
      for (const Value input : step.copies_from_saved(value) ? std::vector<Value>{} : step.copies_to_recompute()) {
        need_copy(input);
      }
      for (const Need& need : step.needs_to_recompute()) {
        add(need);
      }
      return;
    }
    const auto format = plan_.copies.find(value);
    TORCH_CHECK_VALUE(format != plan_.copies.end(), "block: backward needs a copy of value ", value.number,
                      ", which the plan neither saves, imports nor computes again");
    add_slot(value, Form::kCopy, format->second.parts());
  }

  void check_unbiased(const Step& step, Value value) const {
    TORCH_CHECK_VALUE(step.is_view() || step.copies_from_saved(value) || is_linear_in_copies(step, plan_.options),
                      "block: value ", value.number, " cannot be computed again, for ", step.name(),
                      " of unbiased copies is biased");
  }

  const Plan& plan_;
  Schedule schedule_;
  size_t stage_ = 0;
};

}  // namespace

std::vector<bool> wanted_values(const Plan& plan, const std::vector<bool>& wanted) {
  std::vector<bool> values(wanted.begin(), wanted.begin() + plan.program.inputs);
  values.resize(plan.program.values());
  for (const StepPointer& stage : plan.stages) {
    // A pass trains what its steps train.
    const std::vector<ParameterIndex> parameters = stage->parameters();
    const bool trains_inputs =
        std::any_of(stage->inputs.begin(), stage->inputs.end(), [&](Value value) { return values[value.number]; });
    const bool trains_parameters = std::any_of(parameters.begin(), parameters.end(), [&](ParameterIndex index) {
      return wanted[plan.program.inputs + index.number];
    });
    for (const Value output : stage->outputs) {
      values[output.number] = trains_inputs || (trains_parameters && stage->depends_on_parameters(output));
    }
  }
  return values;
}

bool is_linear_in_copies(const Step& step, const PlanOptions& options) {
  std::vector<bool> exact;
  std::transform(step.inputs.begin(), step.inputs.end(), std::back_inserter(exact),
                 [&](Value input) { return options.exact.contains(input); });
  return step.is_linear(exact);
}

Schedule make_schedule(const Plan& plan, const std::vector<bool>& wanted, bool exports) {
  return Scheduler(plan, wanted).schedule(exports);
}

}  // namespace actnn::blocks
