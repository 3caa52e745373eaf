#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "actnn/core/philox.h"

/// \file
/// What the ops do with tensors before and after their kernels.

namespace actnn {

/// Elements that are worth a thread.
inline constexpr int64_t kParallelGrain = 32768;

/// The grain for `at::parallel_for` over items of `elements_per_item` elements.
constexpr int64_t parallel_grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kParallelGrain / std::max<int64_t>(1, elements_per_item));
}

/// A new 1-D uint8 tensor on the device of `like`.
at::Tensor empty_bytes(const c10::SymInt& bytes, const at::Tensor& like);

/// Number of elements of a shape.
template <class Sizes>
auto element_count(const Sizes& size) {
  typename Sizes::value_type count = 1;
  for (const auto& extent : size) {
    count = count * extent;
  }
  return count;
}

/// `tensor` if its elements fill their storage range without gaps or overlaps (contiguous, channels_last, any
/// permutation), else a contiguous copy. Packing runs over the result's elements in storage order.
at::Tensor storage_order(const at::Tensor& tensor);

/// `input` if its elements are dense with the first dimension outermost, so that samples are runs of storage, else a
/// contiguous copy.
at::Tensor samples_outermost(const at::Tensor& input);

/// `tensor` itself if it has the dtype: below autograd, `Tensor::to` is not called then.
inline at::Tensor with_dtype(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

/// In float32 and contiguous; none for none, and for an undefined tensor.
inline std::optional<at::Tensor> in_float(const std::optional<at::Tensor>& tensor) {
  return tensor && tensor->defined() ? std::optional(with_dtype(*tensor, at::kFloat).contiguous()) : std::nullopt;
}

/// Whether a compiler traces the ops on `tensor`, or a Python mode watches them.
bool is_traced(const at::Tensor& tensor);

/// `tensor` on `device`, without a wait unless that is the host, where a copy may be read at once.
at::Tensor on_device(const at::Tensor& tensor, c10::Device device);

/// `tensor` with exactly these strides, copied only if it has others.
at::Tensor with_strides(const at::Tensor& tensor, c10::SymIntArrayRef stride);

/// Reads a CPU random state and advances it by one call; without one, takes the next of torch's default generator.
RandomState take_random_state(const std::optional<at::Tensor>& rng_state);

/// Reads a CPU random state.
RandomState read_random_state(const at::Tensor& rng_state);

}  // namespace actnn
