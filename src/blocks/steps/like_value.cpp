#include "src/blocks/steps/like_value.h"

#include <ATen/ops/empty_strided.h>

namespace actnn::blocks {

at::Tensor empty_like_value(const BackwardRun& run, Value value, const at::Tensor& like) {
  return at::empty_strided_symint(run.sizes(value), run.strides(value), like.options());
}

at::Tensor spread_to_value(const BackwardRun& run, Value value, const at::Tensor& grad) {
  return empty_like_value(run, value, grad).copy_(grad.expand_symint(run.sizes(value)));
}

}  // namespace actnn::blocks
