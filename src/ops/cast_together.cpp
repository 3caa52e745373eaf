#include "src/ops/cast_together.h"

#include <ATen/ops/empty_like.h>

#include <utility>

namespace actnn {

void cast_together(const std::vector<at::Tensor*>& tensors, const std::vector<at::ScalarType>& dtypes) {
  std::vector<at::Tensor> from;
  std::vector<at::Tensor> to;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i]->scalar_type() != dtypes[i]) {
      to.push_back(at::empty_like(*tensors[i], tensors[i]->options().dtype(dtypes[i])));
      from.push_back(std::exchange(*tensors[i], to.back()));
    }
  }
  if (!from.empty()) {
    copy_together(to, from);
  }
}

}  // namespace actnn
