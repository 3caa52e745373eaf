#include "src/blocks/steps/multiply.h"

#include <ATen/ops/mul.h>

#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

/// The gradient times the other factor, in the factor's memory where that is nobody else's.
at::Tensor times_gradient(const at::Tensor& factor, const at::Tensor& grad) {
  if (is_owned(factor) && factor.scalar_type() == grad.scalar_type() && factor.sym_sizes() == grad.sym_sizes()) {
    return factor.mul_(grad);
  }
  return at::mul(factor, grad);
}

}  // namespace

void Multiply::check() const { check_inputs(*this, 2); }

std::vector<Sizes> Multiply::infer_sizes(const KnownSizes& known) const {
  return {broadcast(known.sizes(inputs[0]), known.sizes(inputs[1]))};
}

std::vector<Need> Multiply::needs(const Wants& wants) const {
  std::vector<Need> needs;
  if (wants.wants(inputs[0])) {
    needs.push_back({inputs[1], Form::kCopy});
  }
  if (wants.wants(inputs[1]) && inputs[0] != inputs[1]) {
    needs.push_back({inputs[0], Form::kCopy});
  }
  return needs;
}

std::vector<at::Tensor> Multiply::compute(Operands& operands) const {
  return {with_dtype(at::mul(operands.value(inputs[0]), operands.value(inputs[1])), operands.dtype(output()))};
}

void Multiply::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (inputs[0] == inputs[1]) {
    // 2 x g is linear in the copy.
    if (run.wants(inputs[0])) {
      run.add(inputs[0], times_gradient(run.copy(inputs[0]), grad).mul_(2));
    }
    return;
  }
  for (const auto& [input, other] : {std::pair(inputs[0], inputs[1]), std::pair(inputs[1], inputs[0])}) {
    if (run.wants(input)) {
      run.add(input, sum_to(times_gradient(run.copy(other), grad), run.sizes(input)));
    }
  }
}

namespace {
const RegisterStep<Multiply> kMultiplyStep;
}

}  // namespace actnn::blocks
