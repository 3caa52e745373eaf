#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/SymIntArrayRef.h>

#include "actnn/ops/quantization.h"

/// \file
/// Packing of activations. A packed activation is one 1-D uint8 tensor (docs/format.md); its shape, strides and dtype
/// are not in it and are given again to unpack. None of these functions is differentiable. All work on CPU and Meta
/// (and CUDA where built), with symbolic sizes, and give the same bytes for every device and thread count.
///
/// Errors (c10::ValueError, c10::TypeError): dtypes other than float32, float16, bfloat16; bits outside 1..8;
/// group_size not a positive multiple of 32; a random state that is not {seed, offset} on the input's device; packed
/// tensors of a wrong size.

namespace actnn {

/// Packs `input` (any shape; packed in storage order, or contiguous if it is not dense) and advances `rng_state`;
/// without one, draws from torch's default generator of the device (torch::manual_seed). Bytes: 16, then 4 per group,
/// rounded up to 16, then `bits` per 8 elements. Elements that are infinite or NaN decode to NaN; with 1 bit, so does
/// their group.
at::Tensor quantize(const at::Tensor& input, const Quantization& quantization,
                    const std::optional<at::Tensor>& rng_state = std::nullopt);

/// Unpacks into a new tensor of this size, (dense) stride and dtype. `size` and `stride` are those of
/// `storage_order(input)`.
at::Tensor dequantize(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      at::ScalarType dtype, const Quantization& quantization);

/// Packs with a bit width per sample: `bits` is a uint8 tensor [N] with values 1..8, N the first dimension of `input`.
/// Groups do not cross samples. `code_bytes` is the room for codes, a budget that the host knows without reading
/// `bits`; samples use `align4(ceil(elements / 8) * bits)` bytes each, and what is left is zero. Widths outside 1..8
/// and exceeding the room are errors; on CUDA, where the host does not see the widths, such a sample is unpacked as
/// NaN.
at::Tensor quantize_per_sample(const at::Tensor& input, const at::Tensor& bits, const c10::SymInt& code_bytes,
                               int64_t group_size, Rounding rounding,
                               const std::optional<at::Tensor>& rng_state = std::nullopt);

at::Tensor dequantize_per_sample(const at::Tensor& packed, const at::Tensor& bits, c10::SymIntArrayRef size,
                                 c10::SymIntArrayRef stride, at::ScalarType dtype, int64_t group_size);

}  // namespace actnn
