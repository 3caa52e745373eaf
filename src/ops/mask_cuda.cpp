#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include "actnn/core/layout.h"
#include "actnn/cuda/mask.h"
#include "src/ops/cuda_support.h"
#include "src/ops/mask_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

at::Tensor pack_mask_cuda(const at::Tensor& mask) {
  check_pack_mask(mask);
  const c10::cuda::CUDAGuard guard(mask.device());
  const at::Tensor dense = storage_order(mask);
  at::Tensor packed = empty_bytes(mask_bytes(dense.numel()), mask);
  check_launch(cuda::pack_mask(static_cast<const uint8_t*>(dense.const_data_ptr()), dense.numel(),
                               packed.mutable_data_ptr<uint8_t>(), current_stream()));
  return packed;
}

at::Tensor unpack_mask_cuda(const at::Tensor& packed, c10::IntArrayRef size, c10::IntArrayRef stride) {
  check_unpack_mask(packed, c10::fromIntArrayRefSlow(size), c10::fromIntArrayRefSlow(stride));
  const c10::cuda::CUDAGuard guard(packed.device());
  at::Tensor mask = at::empty_strided(size, stride, packed.options().dtype(at::kBool));
  check_launch(cuda::unpack_mask(packed.const_data_ptr<uint8_t>(), mask.numel(),
                                 static_cast<uint8_t*>(mask.mutable_data_ptr()), current_stream()));
  return mask;
}

at::Tensor relu_into(const at::Tensor& input, const at::Tensor& output, ElementType type) {
  at::Tensor mask = empty_bytes(mask_bytes(input.numel()), input);
  check_launch(cuda::relu(input.const_data_ptr(), type, input.numel(), output.mutable_data_ptr(),
                          mask.mutable_data_ptr<uint8_t>(), current_stream()));
  return mask;
}

std::tuple<at::Tensor, at::Tensor> relu_pack_cuda(const at::Tensor& input) {
  const ElementType type = check_relu_pack(input);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor dense = storage_order(input);
  at::Tensor output = at::empty_like(dense);
  at::Tensor mask = relu_into(dense, output, type);
  return {output, mask};
}

at::Tensor relu_pack_in_place_cuda(const at::Tensor& input) {
  const ElementType type = check_relu_pack_in_place(input);
  const c10::cuda::CUDAGuard guard(input.device());
  return relu_into(input, input, type);
}

at::Tensor apply_mask_cuda(const at::Tensor& input, const at::Tensor& mask, c10::IntArrayRef stride) {
  const auto symbolic_stride = c10::fromIntArrayRefSlow(stride);
  const ElementType type = check_apply_mask(input, mask, symbolic_stride);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor source = with_strides(input, symbolic_stride);
  at::Tensor output = at::empty_strided(input.sizes(), stride, input.options());
  check_launch(cuda::apply_mask(source.const_data_ptr(), type, source.numel(), mask.const_data_ptr<uint8_t>(),
                                output.mutable_data_ptr(), current_stream()));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(actnn, CUDA, m) {
  m.impl("pack_mask", pack_mask_cuda);
  m.impl("unpack_mask", unpack_mask_cuda);
  m.impl("relu_pack", relu_pack_cuda);
  m.impl("relu_pack_", relu_pack_in_place_cuda);
  m.impl("apply_mask", apply_mask_cuda);
}

}  // namespace actnn
