#include "src/blocks/steps/add.h"

#include <ATen/ops/add.h>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void Add::check() const { check_inputs(*this, 2); }

std::vector<Sizes> Add::infer_sizes(const KnownSizes& known) const {
  return {blocks::broadcast(known.sizes(inputs[0]), known.sizes(inputs[1]))};
}

std::vector<at::Tensor> Add::compute(Operands& operands) const {
  return {with_dtype(at::add(operands.value(inputs[0]), operands.value(inputs[1])), operands.dtype(output()))};
}

void Add::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  for (const Value input : inputs) {
    if (run.wants(input)) {
      run.add(input, sum_to(grad, run.sizes(input)));
    }
  }
}

namespace {
const RegisterStep<Add> kAdd;
}

}  // namespace actnn::blocks
