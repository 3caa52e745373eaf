#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include "actnn/cuda/dropout.h"
#include "src/ops/cuda_support.h"
#include "src/ops/dropout_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

/// Returns the state that was used.
at::Tensor dropout_into(const at::Tensor& input, const at::Tensor& output, ElementType type, double probability,
                        const std::optional<at::Tensor>& rng_state) {
  at::Tensor used_state = empty_rng_state(input);
  check_launch(cuda::dropout({.input = input.const_data_ptr(),
                              .type = type,
                              .count = input.numel(),
                              .probability = probability,
                              .random = random_source(rng_state),
                              .output = output.mutable_data_ptr(),
                              .used_state = used_state.mutable_data_ptr<int64_t>()},
                             current_stream()));
  advance_random_state(rng_state);
  return used_state;
}

std::tuple<at::Tensor, at::Tensor> forward_cuda(const at::Tensor& input, double probability,
                                                const std::optional<at::Tensor>& rng_state) {
  const ElementType type = check_dropout_forward(input, probability, rng_state);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor dense = storage_order(input);
  at::Tensor output = at::empty_like(dense);
  at::Tensor used_state = dropout_into(dense, output, type, probability, rng_state);
  return {output, used_state};
}

at::Tensor forward_in_place_cuda(const at::Tensor& input, double probability,
                                 const std::optional<at::Tensor>& rng_state) {
  const ElementType type = check_dropout_forward_in_place(input, probability, rng_state);
  const c10::cuda::CUDAGuard guard(input.device());
  return dropout_into(input, input, type, probability, rng_state);
}

at::Tensor apply_cuda(const at::Tensor& input, double probability, const at::Tensor& state, c10::IntArrayRef stride) {
  const auto symbolic_stride = c10::fromIntArrayRefSlow(stride);
  const ElementType type = check_apply_dropout(input, probability, state, symbolic_stride);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor source = with_strides(input, symbolic_stride);
  at::Tensor output = at::empty_strided(input.sizes(), stride, input.options());
  check_launch(cuda::dropout({.input = source.const_data_ptr(),
                              .type = type,
                              .count = source.numel(),
                              .probability = probability,
                              .random = random_source(state),
                              .output = output.mutable_data_ptr(),
                              .used_state = nullptr},
                             current_stream()));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(actnn, CUDA, m) {
  m.impl("dropout_forward", forward_cuda);
  m.impl("dropout_forward_", forward_in_place_cuda);
  m.impl("apply_dropout", apply_cuda);
}

}  // namespace actnn
