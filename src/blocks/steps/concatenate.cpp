#include "src/blocks/steps/concatenate.h"

#include <ATen/ops/cat.h>
#include <c10/core/WrapDimMinimal.h>
#include <c10/util/Exception.h>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void Concatenate::check() const { TORCH_CHECK_VALUE(!inputs.empty(), "block: concatenate must have at least 1 input"); }

std::vector<Sizes> Concatenate::infer_sizes(const KnownSizes& known) const {
  Sizes size = known.sizes(inputs[0]);
  const int64_t along = c10::maybe_wrap_dim(dimension, static_cast<int64_t>(size.size()));
  for (size_t number = 1; number < inputs.size(); ++number) {
    const Sizes& other = known.sizes(inputs[number]);
    TORCH_CHECK_VALUE(other.size() == size.size(), "block: concatenate must have inputs of the same rank, got shapes ",
                      c10::SymIntArrayRef(size), " and ", c10::SymIntArrayRef(other));
    size[along] = size[along] + other[along];
  }
  return {size};
}

std::vector<at::Tensor> Concatenate::compute(Operands& operands) const {
  std::vector<at::Tensor> values;
  for (const Value input : inputs) {
    values.push_back(with_dtype(operands.value(input), operands.dtype(output())));
  }
  return {at::cat(values, dimension)};
}

void Concatenate::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  const int64_t along = c10::maybe_wrap_dim(dimension, grad.dim());
  c10::SymInt start = 0;
  for (const Value input : inputs) {
    const c10::SymInt& extent = run.sizes(input)[along];
    if (run.wants(input)) {
      run.add(input, grad.narrow_symint(along, start, extent));
    }
    start = start + extent;
  }
}

namespace {
const RegisterStep<Concatenate> kConcatenateStep;
}

}  // namespace actnn::blocks
