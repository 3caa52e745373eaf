#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "actnn/cuda/max_pool.h"
#include "src/ops/cuda_support.h"
#include "src/ops/max_pool_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

std::tuple<at::Tensor, at::Tensor> pack_cuda(const at::Tensor& input, c10::IntArrayRef kernel_size,
                                             c10::IntArrayRef stride, c10::IntArrayRef padding,
                                             c10::IntArrayRef dilation, bool ceil_mode) {
  const auto [type, problem] = check_max_pool2d_pack(input, {kernel_size, stride, padding, dilation, ceil_mode});
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor source = input.contiguous(problem.format);
  at::Tensor output = at::empty(problem.output_size, input.options().memory_format(problem.format));
  at::Tensor positions = empty_bytes(problem.positions_bytes, input);
  check_launch(cuda::max_pool2d(problem.shape, type, source.const_data_ptr(), output.mutable_data_ptr(),
                                positions.mutable_data_ptr<uint8_t>(), current_stream()));
  return {output, positions};
}

at::Tensor backward_cuda(const at::Tensor& grad_output, const at::Tensor& positions, c10::IntArrayRef size,
                         bool channels_last, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                         c10::IntArrayRef padding, c10::IntArrayRef dilation, bool ceil_mode) {
  const auto [type, problem] = check_max_pool2d_backward(grad_output, positions, size, channels_last,
                                                         {kernel_size, stride, padding, dilation, ceil_mode});
  const c10::cuda::CUDAGuard guard(grad_output.device());
  const at::Tensor grad = grad_output.contiguous(problem.format);
  at::Tensor grad_input = at::empty(size, grad.options().memory_format(problem.format));
  check_launch(cuda::max_pool2d_backward(problem.shape, type, grad.const_data_ptr(),
                                         positions.const_data_ptr<uint8_t>(), grad_input.mutable_data_ptr(),
                                         current_stream()));
  return grad_input;
}

at::Tensor indices_cuda(const at::Tensor& positions, c10::IntArrayRef size, bool channels_last,
                        c10::IntArrayRef kernel_size, c10::IntArrayRef stride, c10::IntArrayRef padding,
                        c10::IntArrayRef dilation, bool ceil_mode) {
  const MaxPool2dProblem problem =
      check_max_pool2d_indices(positions, size, channels_last, {kernel_size, stride, padding, dilation, ceil_mode});
  const c10::cuda::CUDAGuard guard(positions.device());
  at::Tensor indices =
      at::empty(problem.output_size, positions.options().dtype(at::kLong).memory_format(problem.format));
  check_launch(cuda::max_pool2d_indices(problem.shape, positions.const_data_ptr<uint8_t>(),
                                        indices.mutable_data_ptr<int64_t>(), current_stream()));
  return indices;
}

}  // namespace

TORCH_LIBRARY_IMPL(actnn, CUDA, m) {
  m.impl("max_pool2d_pack", pack_cuda);
  m.impl("max_pool2d_pack_backward", backward_cuda);
  m.impl("max_pool2d_indices", indices_cuda);
}

}  // namespace actnn
