#include "src/blocks/value_sizes.h"

#include <utility>

namespace actnn::blocks {
namespace {

class Inferred : public KnownSizes {
 public:
  Inferred(const std::vector<Sizes>& values, const std::vector<at::Tensor>& parameters,
           const std::vector<c10::SymInt>& integers)
      : values_(values), parameters_(parameters), integers_(integers) {}

  const Sizes& sizes(Value value) const override { return values_[value.number]; }
  c10::SymIntArrayRef sizes(ParameterIndex index) const override { return parameters_[index.number].sym_sizes(); }
  c10::SymInt integer(IntegerIndex index) const override { return integers_[index.number]; }

 private:
  const std::vector<Sizes>& values_;
  const std::vector<at::Tensor>& parameters_;
  const std::vector<c10::SymInt>& integers_;
};

}  // namespace

std::vector<Sizes> infer_sizes(const Program& program, const std::vector<Sizes>& inputs,
                               const std::vector<at::Tensor>& parameters, const std::vector<c10::SymInt>& integers) {
  std::vector<Sizes> values = inputs;
  values.resize(program.values());
  const Inferred known(values, parameters, integers);
  for (const StepPointer& step : program.steps) {
    std::vector<Sizes> made = step->infer_sizes(known);
    for (size_t output = 0; output < made.size(); ++output) {
      values[step->outputs[output].number] = std::move(made[output]);
    }
  }
  return values;
}

}  // namespace actnn::blocks
