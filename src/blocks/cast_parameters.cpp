#include "src/blocks/cast_parameters.h"

#include "src/blocks/step.h"
#include "src/ops/cast_together.h"

namespace actnn::blocks {

at::ScalarType dtype_of(const Program& program, Value value, at::ScalarType dtype_of_run) {
  return program.dtypes.empty() ? dtype_of_run : program.dtypes[value.number];
}

void cast_parameters(const Program& program, std::vector<at::Tensor>& parameters, at::ScalarType dtype_of_run) {
  std::vector<at::Tensor*> casts;
  std::vector<at::ScalarType> dtypes;
  for (const StepPointer& step : program.steps) {
    for (const ParameterIndex index : step->cast_parameters()) {
      casts.push_back(&parameters[index.number]);
      dtypes.push_back(dtype_of(program, step->output(), dtype_of_run));
    }
  }
  cast_together(casts, dtypes);
}

}  // namespace actnn::blocks
