#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include "actnn/core/layout.h"
#include "actnn/cuda/quantize.h"
#include "src/ops/cuda_support.h"
#include "src/ops/quantize_per_sample_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

/// The scratch belongs to the stream: the caching allocator hands it on only to later work of the same stream.
at::Tensor offsets_scratch(const at::Tensor& bits) {
  return at::empty({bits.numel() + 1}, bits.options().dtype(at::kLong));
}

cuda::SampleBits sample_bits(const at::Tensor& bits, int64_t room, const at::Tensor& offsets) {
  return {.bits = bits.const_data_ptr<uint8_t>(),
          .samples = bits.numel(),
          .room = room,
          .code_offsets = offsets.mutable_data_ptr<int64_t>()};
}

at::Tensor quantize_per_sample_cuda(const at::Tensor& input, const at::Tensor& bits, int64_t room, int64_t group_size,
                                    c10::string_view rounding, const std::optional<at::Tensor>& rng_state) {
  const auto [type, how] = check_quantize_per_sample(input, bits, room, group_size, rounding, rng_state);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor dense = samples_outermost(input);
  const int64_t samples = dense.size(0);
  at::Tensor packed = empty_bytes(codes_offset(all_groups(dense.numel(), samples, group_size)) + room, input);
  const at::Tensor offsets = offsets_scratch(bits);
  check_launch(cuda::quantize_per_sample({.elements = dense.const_data_ptr(),
                                          .type = type,
                                          .count = elements_per_sample(dense.numel(), samples),
                                          .group_size = group_size,
                                          .bits = 0,
                                          .packed = packed.mutable_data_ptr<uint8_t>(),
                                          .random = random_source(rng_state),
                                          .rounding = how},
                                         sample_bits(bits, room, offsets), current_stream()));
  advance_random_state(rng_state);
  return packed;
}

at::Tensor dequantize_per_sample_cuda(const at::Tensor& packed, const at::Tensor& bits, c10::IntArrayRef size,
                                      c10::IntArrayRef stride, at::ScalarType dtype, int64_t group_size) {
  const ElementType type = check_dequantize_per_sample(packed, bits, c10::fromIntArrayRefSlow(size),
                                                       c10::fromIntArrayRefSlow(stride), dtype, group_size);
  const c10::cuda::CUDAGuard guard(packed.device());
  const at::Tensor bytes = aligned_bytes(packed);
  at::Tensor output = at::empty_strided(size, stride, packed.options().dtype(dtype));
  const int64_t room = packed.numel() - codes_offset(all_groups(output.numel(), size[0], group_size));
  const at::Tensor offsets = offsets_scratch(bits);
  check_launch(cuda::dequantize_per_sample({.packed = bytes.const_data_ptr<uint8_t>(),
                                            .count = elements_per_sample(output.numel(), size[0]),
                                            .group_size = group_size,
                                            .bits = 0,
                                            .type = type,
                                            .elements = output.mutable_data_ptr()},
                                           sample_bits(bits, room, offsets), current_stream()));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(actnn, CUDA, m) {
  m.impl("quantize_per_sample", quantize_per_sample_cuda);
  m.impl("dequantize_per_sample", dequantize_per_sample_cuda);
}

}  // namespace actnn
