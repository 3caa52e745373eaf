#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace actnn {

/// A tensor [N, C, ...] as a matrix of rows x channels: a copy unless it is channels_last.
inline at::Tensor as_matrix(const at::Tensor& tensor) {
  std::vector<int64_t> channels_last(tensor.dim());
  std::iota(channels_last.begin(), channels_last.end(), 0);
  std::rotate(channels_last.begin() + 1, channels_last.begin() + 2, channels_last.end());
  c10::SymInt rows = tensor.sym_size(0);
  for (const c10::SymInt& extent : tensor.sym_sizes().slice(2)) {
    rows = rows * extent;
  }
  return tensor.permute(channels_last).contiguous().view_symint({rows, tensor.sym_size(1)});
}

/// The matrix as the channels_last tensor [N, C, ...] of `size`.
inline at::Tensor from_matrix(const at::Tensor& matrix, c10::SymIntArrayRef size) {
  std::vector<c10::SymInt> channels_last(size.begin(), size.end());
  std::rotate(channels_last.begin() + 1, channels_last.begin() + 2, channels_last.end());
  std::vector<int64_t> channels_first(size.size());
  std::iota(channels_first.begin(), channels_first.end(), 0);
  std::rotate(channels_first.begin() + 1, channels_first.end() - 1, channels_first.end());
  return matrix.view_symint(channels_last).permute(channels_first);
}

}  // namespace actnn
