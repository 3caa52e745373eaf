/// Of a build without CUDA.

#include <ATen/ops/_foreach_copy.h>

#include "src/ops/cast_together.h"

namespace actnn {

void copy_together(const std::vector<at::Tensor>& to, const std::vector<at::Tensor>& from) {
  at::_foreach_copy_(to, from);
}

}  // namespace actnn
