#include "src/blocks/steps/broadcast.h"

#include <ATen/ExpandUtils.h>
#include <c10/util/Exception.h>

namespace actnn::blocks {

void check_inputs(const Step& step, size_t count) {
  TORCH_CHECK_VALUE(step.inputs.size() == count, "block: ", step.name(), " must have ", count,
                    count == 1 ? " input" : " inputs", ", got ", step.inputs.size());
}

Sizes broadcast(const Sizes& first, const Sizes& second) {
  const auto size = at::infer_size_symdimvector(first, second);
  return {size.begin(), size.end()};
}

at::Tensor sum_to(const at::Tensor& grad, const Sizes& size) {
  return grad.sym_sizes() == c10::SymIntArrayRef(size) ? grad : at::sum_to(grad, size);
}

}  // namespace actnn::blocks
