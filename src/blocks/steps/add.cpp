#include "src/blocks/steps/add.h"

#include <ATen/ops/add.h>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/rows.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void Add::check() const { check_inputs(*this, 2); }

std::vector<Sizes> Add::infer_sizes(const KnownSizes& known) const {
  return {blocks::broadcast(known.sizes(inputs[0]), known.sizes(inputs[1]))};
}

std::vector<at::Tensor> Add::compute(Operands& operands) const {
  const at::Tensor first = operands.value(inputs[0]);
  const at::Tensor second = operands.value(inputs[1]);
  const bool is_mixed = first.scalar_type() != second.scalar_type() && first.is_floating_point() &&
                        second.is_floating_point() && first.sym_sizes() == second.sym_sizes() &&
                        operands.layout(output()) == Layout::kPlain;
  return {is_mixed ? add_rows(first, second, /*probability=*/0.0, operands.dtype(output())).output
                   : with_dtype(at::add(first, second), operands.dtype(output()))};
}

void Add::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  for (const Value input : inputs) {
    add_gradient_of_summand(run, grad, input);
  }
}

void add_gradient_of_summand(BackwardRun& run, const at::Tensor& grad, Value input) {
  if (!run.wants(input)) {
    return;
  }
  // As autograd has it; in one pass with the sums that a linear layer asks for.
  const at::ScalarType dtype = run.dtype(input);
  if (dtype != grad.scalar_type() && grad.sym_sizes() == run.sizes(input) && run.reads_sums(input)) {
    run.add(input, add_rows_backward(grad, /*probability=*/0.0, {}, dtype, /*wants_sums=*/true));
  } else {
    run.add(input, with_dtype(sum_to(grad, run.sizes(input)), dtype));
  }
}

namespace {
const RegisterStep<Add> kAdd;
}

}  // namespace actnn::blocks
