#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "src/autograd/pool_lists.h"

/// \file
/// Pools over one spatial dimension are those over planes of height 1.

namespace actnn::blocks {

/// [N, C, L] as [N, C, 1, L], and back; other tensors as they are.
inline at::Tensor as_planes(const at::Tensor& tensor) { return tensor.dim() == 3 ? tensor.unsqueeze(2) : tensor; }
inline at::Tensor from_planes(const at::Tensor& tensor, size_t dimensions) {
  return dimensions == 1 ? tensor.squeeze(2) : tensor;
}

/// A list of such a pool, which has this entry for the height.
inline std::vector<int64_t> plane_list(const std::vector<int64_t>& list, int64_t height) {
  return list.size() == 1 ? with_unit(list, height) : list;
}

}  // namespace actnn::blocks
