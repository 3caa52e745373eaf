#include "actnn/blocks/program.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "src/blocks/overloaded.h"

namespace actnn::blocks {
namespace {

int64_t highest(std::initializer_list<std::optional<Index>> places) {
  int64_t highest = -1;
  for (const auto& place : places) {
    highest = std::max(highest, place.value_or(-1));
  }
  return highest;
}

}  // namespace

Value Program::add(Step step) {
  steps.push_back(std::move(step));
  return output();
}

int64_t Program::parameters() const {
  int64_t count = 0;
  for (const Step& step : steps) {
    if (const auto* convolution = std::get_if<Convolution>(&step)) {
      count = std::max(count, highest({convolution->weight, convolution->bias}) + 1);
    } else if (const auto* norm = std::get_if<BatchNorm>(&step)) {
      count = std::max(count, highest({norm->weight, norm->bias}) + 1);
    }
  }
  return count;
}

int64_t Program::buffers() const {
  int64_t count = 0;
  for (const Step& step : steps) {
    if (const auto* norm = std::get_if<BatchNorm>(&step)) {
      count = std::max(count, highest({norm->running_mean, norm->running_var, norm->num_batches_tracked}) + 1);
    }
  }
  return count;
}

std::vector<Value> operands(const Step& step) {
  return std::visit(Overloaded{[](const Add& add) {
                                 return std::vector{add.first, add.second};
                               },
                               [](const auto& other) { return std::vector{other.input}; }},
                    step);
}

void check_program(const Program& program) {
  TORCH_CHECK_VALUE(program.inputs >= 1, "block: a program must have an input, got ", program.inputs);
  TORCH_CHECK_VALUE(!program.steps.empty(), "block: a program must have steps");
  for (size_t number = 0; number < program.steps.size(); ++number) {
    const Value made = program.inputs + static_cast<int64_t>(number);
    for (const Value value : operands(program.steps[number])) {
      TORCH_CHECK_VALUE(value >= 0 && value < made, "block: step ", number, " must read values in 0..", made - 1,
                        ", which are there before it, got ", value);
    }
    if (const auto* convolution = std::get_if<Convolution>(&program.steps[number])) {
      const size_t dimensions = convolution->stride.size();
      TORCH_CHECK_VALUE(dimensions >= 1 && dimensions <= 3 && convolution->padding.size() == dimensions &&
                            convolution->dilation.size() == dimensions,
                        "block: step ", number,
                        " must have stride, padding and dilation of 1 to 3 entries, as many each, got ", dimensions,
                        ", ", convolution->padding.size(), " and ", convolution->dilation.size());
      TORCH_CHECK_VALUE(convolution->weight >= 0 && convolution->bias.value_or(0) >= 0, "block: step ", number,
                        " must have a weight, and no negative places of parameters");
    }
    if (const auto* norm = std::get_if<BatchNorm>(&program.steps[number])) {
      TORCH_CHECK_VALUE(norm->running_mean.has_value() == norm->running_var.has_value(), "block: step ", number,
                        " must have both a running mean and a running variance, or none");
      TORCH_CHECK_VALUE(norm->momentum || norm->num_batches_tracked || !norm->running_mean, "block: step ", number,
                        " has no momentum, and no num_batches_tracked that would stand for it");
    }
  }
}

}  // namespace actnn::blocks
