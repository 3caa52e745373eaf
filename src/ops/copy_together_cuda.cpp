#include <ATen/ops/_foreach_copy.h>

#include <map>
#include <utility>

#include "actnn/cuda/cast.h"
#include "src/ops/cast_together.h"
#include "src/ops/checks.h"
#include "src/ops/cuda_support.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

/// Whether the kernel copies it: in the order of storage.
bool is_fast(const at::Tensor& to, const at::Tensor& from) {
  return to.device() == from.device() && from.is_cuda() && !is_traced(from) && is_compressible(from.scalar_type()) &&
         is_compressible(to.scalar_type()) && from.is_non_overlapping_and_dense() && to.strides() == from.strides();
}

}  // namespace

void copy_together(const std::vector<at::Tensor>& to, const std::vector<at::Tensor>& from) {
  std::map<std::pair<at::ScalarType, at::ScalarType>, std::vector<cuda::Cast>> casts;
  std::vector<at::Tensor> other_to;
  std::vector<at::Tensor> other_from;
  for (size_t i = 0; i < to.size(); ++i) {
    if (is_fast(to[i], from[i]) && from[i].device() == from[0].device()) {
      casts[{from[i].scalar_type(), to[i].scalar_type()}].push_back(
          {from[i].const_data_ptr(), to[i].mutable_data_ptr(), from[i].numel()});
    } else {
      other_to.push_back(to[i]);
      other_from.push_back(from[i]);
    }
  }
  if (!casts.empty()) {
    const c10::cuda::CUDAGuard guard(from[0].device());
    for (const auto& [types, arrays] : casts) {
      check_launch(cuda::cast_arrays(arrays, check_element_type("cast_together", types.first),
                                     check_element_type("cast_together", types.second), current_stream()));
    }
  }
  if (!other_to.empty()) {
    at::_foreach_copy_(other_to, other_from);
  }
}

}  // namespace actnn
