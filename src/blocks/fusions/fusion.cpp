#include "src/blocks/fusions/fusion.h"

#include <algorithm>

namespace actnn::blocks {

Window::Window(const Program& program_, const PlanOptions& options_, const std::vector<Layout>& layouts_)
    : program(program_), options(options_), layouts(layouts_), readers_(program_.values()), makers_(program_.values()) {
  for (size_t number = 0; number < program.steps.size(); ++number) {
    const Step& step = *program.steps[number];
    for (const Value input : step.inputs) {
      readers_[input.number].push_back(number);
    }
    for (const Value output : step.outputs) {
      makers_[output.number] = number;
    }
  }
}

std::optional<size_t> Window::sole_reader(Value value) const {
  const bool is_result = std::find(program.results.begin(), program.results.end(), value) != program.results.end();
  const std::vector<size_t>& readers = readers_[value.number];
  return readers.size() == 1 && !is_result ? std::optional(readers.front()) : std::nullopt;
}

bool Window::is_input(Value value) const {
  if (!maker(value)) {
    return true;
  }
  const Step& step = *program.steps[*maker(value)];
  return step.is_view() &&
         std::any_of(step.inputs.begin(), step.inputs.end(), [&](Value input) { return is_input(input); });
}

bool Window::have_one_dtype(const std::vector<Value>& values) const {
  return program.dtypes.empty() || std::all_of(values.begin(), values.end(), [&](Value value) {
           return program.dtypes[value.number] == program.dtypes[values.front().number];
         });
}

}  // namespace actnn::blocks
