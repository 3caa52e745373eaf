#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>

#include "actnn/core/columns.h"
#include "actnn/core/rounding.h"

/// \file
/// Packing of activations in column groups (core/columns.h): each channel of `group_rows` rows has a grid of its own,
/// so that channels of other scales cost it nothing. A packed activation is one 1-D uint8 tensor (docs/format.md); its
/// sizes and dtype are not in it and are given again to unpack. None of these functions is differentiable. They work
/// on CPU and Meta (and CUDA where built), with symbolic numbers of rows, and give the same bytes for every device and
/// thread count.
///
/// Errors (c10::ValueError, c10::TypeError): dtypes other than float32, float16, bfloat16; bits outside 1..8;
/// group_rows other than 64, 128 and 256; an input without dimensions; a random state that is not {seed, offset} on the
/// input's device; packed tensors of a wrong size.

namespace actnn {

/// How an activation is quantized in column groups.
struct ColumnQuantization {
  int64_t bits = 4;                         ///< of a code, 1..8
  int64_t group_rows = kDefaultGroupRows;   ///< rows whose elements of a channel share a minimum and a step
  Rounding rounding = Rounding::kDithered;  ///< nearest biases gradients
};

/// Packs `input` [..., channels] as a matrix of its last dimension (a contiguous copy of it if it is not contiguous)
/// and advances `rng_state`; without one, draws from torch's default generator of the device (torch::manual_seed).
/// Bytes: 16, 4 per group, rounded up to 16, and `bits` per 8 rows of a channel, the rows of a group rounded up to 32.
at::Tensor quantize_columns(const at::Tensor& input, const ColumnQuantization& quantization,
                            const std::optional<at::Tensor>& rng_state = std::nullopt);

/// Unpacks into a new contiguous tensor [rows, channels] of `dtype`; times `weight`, plus `bias`, both [channels] and
/// floating, if they are given.
at::Tensor dequantize_columns(const at::Tensor& packed, const c10::SymInt& rows, const c10::SymInt& channels,
                              at::ScalarType dtype, const ColumnQuantization& quantization,
                              const std::optional<at::Tensor>& weight = std::nullopt,
                              const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace actnn
