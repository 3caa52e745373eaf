#include "src/blocks/steps/roll.h"

#include <ATen/ops/roll.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <functional>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void Roll::visit_fields(FieldVisitor& fields) {
  fields.required("shifts", shifts);
  fields.required("dimensions", dimensions);
}

void Roll::check() const {
  check_inputs(*this, 1);
  TORCH_CHECK_VALUE(!shifts.empty() && shifts.size() == dimensions.size(),
                    "block: roll must have a dimension for each shift, got ", c10::IntArrayRef(dimensions), " for ",
                    c10::IntArrayRef(shifts));
}

std::vector<at::Tensor> Roll::compute(Operands& operands) const {
  return {at::roll(with_dtype(operands.value(inputs[0]), operands.dtype(output())), shifts, dimensions)};
}

void Roll::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (!run.wants(inputs[0])) {
    return;
  }
  std::vector<int64_t> back(shifts.size());
  std::transform(shifts.begin(), shifts.end(), back.begin(), std::negate<>());
  run.add(inputs[0], at::roll(grad, back, dimensions));
}

namespace {
const RegisterStep<Roll> kRollStep;
}

}  // namespace actnn::blocks
