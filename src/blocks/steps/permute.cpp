#include "src/blocks/steps/permute.h"

#include <c10/core/WrapDimMinimal.h>
#include <c10/util/Exception.h>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void Permute::check() const {
  check_inputs(*this, 1);
  std::vector<bool> named(dimensions.size(), false);
  for (const int64_t dimension : order()) {
    TORCH_CHECK_VALUE(!named[dimension], "block: permute must name each dimension once, got ",
                      c10::IntArrayRef(dimensions));
    named[dimension] = true;
  }
}

std::vector<int64_t> Permute::order() const {
  std::vector<int64_t> order;
  const auto rank = static_cast<int64_t>(dimensions.size());
  for (const int64_t dimension : dimensions) {
    TORCH_CHECK_VALUE(dimension >= -rank && dimension < rank, "block: permute must have dimensions in ", -rank, "..",
                      rank - 1, ", got ", c10::IntArrayRef(dimensions));
    order.push_back(c10::maybe_wrap_dim(dimension, rank));
  }
  return order;
}

std::vector<Sizes> Permute::infer_sizes(const KnownSizes& known) const {
  const Sizes& input = known.sizes(inputs[0]);
  TORCH_CHECK_VALUE(input.size() == dimensions.size(), "block: permute must have an input of rank ", dimensions.size(),
                    ", got shape ", c10::SymIntArrayRef(input));
  Sizes size;
  for (const int64_t dimension : order()) {
    size.push_back(input[dimension]);
  }
  return {size};
}

std::vector<at::Tensor> Permute::compute(Operands& operands) const {
  return {with_dtype(operands.value(inputs[0]), operands.dtype(output())).permute(dimensions)};
}

void Permute::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (!run.wants(inputs[0])) {
    return;
  }
  std::vector<int64_t> back(dimensions.size());
  int64_t place = 0;
  for (const int64_t dimension : order()) {
    back[dimension] = place++;
  }
  run.add(inputs[0], grad.permute(back));
}

namespace {
const RegisterStep<Permute> kPermuteStep;
}

}  // namespace actnn::blocks
