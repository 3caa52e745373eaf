#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include "actnn/core/layout.h"
#include "actnn/cuda/quantize.h"
#include "src/ops/cuda_support.h"
#include "src/ops/quantize_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

at::Tensor quantize_cuda(const at::Tensor& input, int64_t bits, int64_t group_size, c10::string_view rounding,
                         const std::optional<at::Tensor>& rng_state) {
  const auto [type, how] = check_quantize(input, bits, group_size, rounding, rng_state);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor dense = storage_order(input);
  at::Tensor packed = empty_bytes(packed_bytes(dense.numel(), static_cast<int>(bits), group_size), input);
  check_launch(cuda::quantize({.elements = dense.const_data_ptr(),
                               .type = type,
                               .count = dense.numel(),
                               .group_size = group_size,
                               .bits = static_cast<int>(bits),
                               .packed = packed.mutable_data_ptr<uint8_t>(),
                               .random = random_source(rng_state),
                               .rounding = how},
                              current_stream()));
  advance_random_state(rng_state);
  return packed;
}

at::Tensor dequantize_cuda(const at::Tensor& packed, c10::IntArrayRef size, c10::IntArrayRef stride,
                           at::ScalarType dtype, int64_t bits, int64_t group_size) {
  const ElementType type = check_dequantize(packed, c10::fromIntArrayRefSlow(size), c10::fromIntArrayRefSlow(stride),
                                            dtype, bits, group_size);
  const c10::cuda::CUDAGuard guard(packed.device());
  const at::Tensor bytes = aligned_bytes(packed);
  at::Tensor output = at::empty_strided(size, stride, packed.options().dtype(dtype));
  check_launch(cuda::dequantize({.packed = bytes.const_data_ptr<uint8_t>(),
                                 .count = output.numel(),
                                 .group_size = group_size,
                                 .bits = static_cast<int>(bits),
                                 .type = type,
                                 .elements = output.mutable_data_ptr()},
                                current_stream()));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(actnn, CUDA, m) {
  m.impl("quantize", quantize_cuda);
  m.impl("dequantize", dequantize_cuda);
}

}  // namespace actnn
