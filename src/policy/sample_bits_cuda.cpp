#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>
#include <torch/library.h>

#include <tuple>

#include "actnn/cuda/bit_allocation.h"
#include "actnn/policy/bit_allocation.h"
#include "src/ops/cuda_support.h"
#include "src/policy/sample_bits_checks.h"

namespace actnn {
namespace {

/// Above, sorting is faster than counting for each decrement what comes before it.
constexpr int64_t kMostCounted = 2048;

std::tuple<at::Tensor, at::Tensor> allocate_cuda(const at::Tensor& range, const std::optional<at::Tensor>& gradient,
                                                 double factor, int64_t initial_bits, int64_t total_bits) {
  check_allocate_sample_bits(range, gradient, initial_bits);
  const c10::cuda::CUDAGuard guard(range.device());
  const int64_t samples = range.size(0);
  const at::Tensor dense = range.contiguous();
  at::Tensor sensitivity = at::empty_like(dense);
  at::Tensor bits = empty_sample_bits(dense);
  const bool counts = samples <= kMostCounted;
  const int64_t excess = counts ? initial_bits * samples - total_bits : 0;
  check_launch(cuda::allocate_sample_bits({.range = dense.const_data_ptr<float>(),
                                           .gradient = gradient ? gradient->const_data_ptr<float>() : nullptr,
                                           .factor = static_cast<float>(factor),
                                           .samples = samples},
                                          static_cast<int>(initial_bits), excess, sensitivity.mutable_data_ptr<float>(),
                                          bits.mutable_data_ptr<uint8_t>(), current_stream()));
  if (!counts) {
    bits = allocate_bits(bits, sensitivity, at::ones_like(bits, bits.options().dtype(at::kLong)), total_bits);
  }
  return {std::move(sensitivity), std::move(bits)};
}

at::Tensor update_cuda(at::Tensor& gradient, const at::Tensor& norms) {
  check_update_gradient_norm(gradient, norms);
  const c10::cuda::CUDAGuard guard(gradient.device());
  const at::Tensor dense = norms.contiguous();
  at::Tensor known = at::empty_like(gradient);
  check_launch(cuda::update_gradient_norm(dense.const_data_ptr<float>(), dense.numel(),
                                          gradient.mutable_data_ptr<float>(), known.mutable_data_ptr<float>(),
                                          current_stream()));
  return known;
}

}  // namespace

TORCH_LIBRARY_IMPL(actnn, CUDA, m) {
  m.impl("allocate_sample_bits", allocate_cuda);
  m.impl("update_gradient_norm_", update_cuda);
}

}  // namespace actnn
