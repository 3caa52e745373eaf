#include "src/blocks/steps/mean.h"

#include <ATen/WrapDimUtilsMulti.h>
#include <ATen/ops/mean.h>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/like_value.h"

namespace actnn::blocks {
namespace {

/// Whether each of the dimensions is one of `list`, or the list is empty.
std::vector<bool> is_reduced(const std::vector<int64_t>& list, size_t rank) {
  std::vector<bool> reduced(rank, list.empty());
  for (const int64_t dimension : list) {
    reduced[c10::maybe_wrap_dim(dimension, static_cast<int64_t>(rank))] = true;
  }
  return reduced;
}

}  // namespace

void Mean::visit_fields(FieldVisitor& fields) {
  fields.required("dimensions", dimensions);
  fields.optional("keepdim", keepdim);
}

void Mean::check() const { check_inputs(*this, 1); }

std::vector<Sizes> Mean::infer_sizes(const KnownSizes& known) const {
  const Sizes& input = known.sizes(inputs[0]);
  const std::vector<bool> reduced = is_reduced(dimensions, input.size());
  Sizes size;
  for (size_t d = 0; d < input.size(); ++d) {
    if (!reduced[d] || keepdim) {
      size.push_back(reduced[d] ? c10::SymInt(1) : input[d]);
    }
  }
  return {size};
}

std::vector<at::Tensor> Mean::compute(Operands& operands) const {
  return {at::mean(operands.value(inputs[0]), dimensions, keepdim, operands.dtype(output()))};
}

void Mean::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (!run.wants(inputs[0])) {
    return;
  }
  Sizes size = run.sizes(inputs[0]);
  const std::vector<bool> reduced = is_reduced(dimensions, size.size());
  c10::SymInt count = 1;
  for (size_t d = 0; d < size.size(); ++d) {
    if (reduced[d]) {
      count = count * size[d];
      size[d] = 1;
    }
  }
  run.add(inputs[0], spread_to_value(run, inputs[0], grad.div(c10::Scalar(count)).reshape_symint(size)));
}

namespace {
const RegisterStep<Mean> kMeanStep;
}

}  // namespace actnn::blocks
