#include "src/blocks/steps/attention_groups.h"

#include <vector>

namespace actnn::blocks {

at::Tensor expand_groups(const at::Tensor& tensor, const at::Tensor& query) {
  return tensor.repeat_interleave_symint(query.sym_size(-3) / tensor.sym_size(-3), -3);
}

at::Tensor sum_groups(const at::Tensor& grad, const at::Tensor& like) {
  std::vector<c10::SymInt> size = grad.sym_sizes().vec();
  const auto heads = size.end() - 3;
  const c10::SymInt shared = *heads / like.sym_size(-3);
  *heads = like.sym_size(-3);
  size.insert(heads + 1, shared);
  return grad.reshape_symint(size).sum(-3);
}

}  // namespace actnn::blocks
