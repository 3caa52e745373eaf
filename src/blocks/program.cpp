#include "actnn/blocks/program.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "src/blocks/indices.h"
#include "src/blocks/step.h"

namespace actnn::blocks {

Value Program::add(std::shared_ptr<Step> step) {
  const int64_t made = values();
  step->check();
  for (const Value value : step->inputs) {
    TORCH_CHECK_VALUE(value.number >= 0 && value.number < made, "block: step ", steps.size(), ", ", step->name(),
                      ", must read values in 0..", made - 1, ", which are there before it, got ", value.number);
  }
  for (size_t output = 0; output < step->output_count(); ++output) {
    step->outputs.push_back({made + static_cast<int64_t>(output)});
  }
  steps.push_back(std::move(step));
  return {made};
}

int64_t Program::values() const { return steps.empty() ? inputs : steps.back()->outputs.back().number + 1; }

std::optional<size_t> Program::maker(Value value) const {
  const auto step = std::find_if(steps.begin(), steps.end(), [&](const StepPointer& pointer) {
    return std::find(pointer->outputs.begin(), pointer->outputs.end(), value) != pointer->outputs.end();
  });
  return step == steps.end() ? std::nullopt : std::optional<size_t>(step - steps.begin());
}

int64_t Program::parameters() const {
  int64_t count = 0;
  for (const StepPointer& step : steps) {
    for (const ParameterIndex index : indices_of(*step).parameters) {
      count = std::max(count, index.number + 1);
    }
  }
  return count;
}

int64_t Program::buffers() const {
  int64_t count = 0;
  for (const StepPointer& step : steps) {
    for (const BufferIndex index : indices_of(*step).buffers) {
      count = std::max(count, index.number + 1);
    }
  }
  return count;
}

void check_program(const Program& program) {
  TORCH_CHECK_VALUE(program.inputs >= 1, "block: a program must have an input, got ", program.inputs);
  TORCH_CHECK_VALUE(program.integers >= 0, "block: a program must have 0 or more integers, got ", program.integers);
  TORCH_CHECK_VALUE(!program.steps.empty(), "block: a program must have steps");
  TORCH_CHECK_VALUE(!program.results.empty(), "block: a program must have results");
  for (const Value result : program.results) {
    TORCH_CHECK_VALUE(result.number >= program.inputs && result.number < program.values(),
                      "block: results must be values that steps make, in ", program.inputs, "..", program.values() - 1,
                      ", got ", result.number);
  }
  TORCH_CHECK_VALUE(program.dtypes.empty() || static_cast<int64_t>(program.dtypes.size()) == program.values(),
                    "block: dtypes must have one entry per value, ", program.values(), ", got ", program.dtypes.size());
  for (const StepPointer& step : program.steps) {
    const Indices indices = indices_of(*step);
    const auto check_places = [&](const char* what, const auto& places) {
      for (const auto& place : places) {
        TORCH_CHECK_VALUE(place.number >= 0, "block: ", step->name(), " must name ", what, " by places from 0 on, got ",
                          place.number);
      }
    };
    check_places("parameters", indices.parameters);
    check_places("buffers", indices.buffers);
    for (const IntegerIndex index : indices.integers) {
      TORCH_CHECK_VALUE(index.number >= 0 && index.number < program.integers, "block: ", step->name(),
                        " must name integers in 0..", program.integers - 1, ", got ", index.number);
    }
  }
}

}  // namespace actnn::blocks
