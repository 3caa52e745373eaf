#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <cstdint>
#include <optional>

#include "actnn/ops/columns.h"

/// \file
/// Tensors whose channels are innermost in memory, packed in column groups: [..., C], or channels_last [N, C, ...]; and
/// the unpacking of tensors that are packed so or in storage order.

namespace actnn {

/// Where the channels of a tensor are.
enum class Channels : int8_t {
  kLast,    ///< the last dimension; the tensor is contiguous
  kSecond,  ///< the second of [N, C, ...]; the tensor is channels_last
};

/// Those of [N, C, ...], if they are innermost: of a tensor that is channels_last.
std::optional<Channels> innermost_channels(const at::Tensor& input);

/// Whether a tensor is packed in columns: where it has 64 rows, for short groups cost more than they are worth, and, if
/// it is channels_last, 8 channels.
bool fills_columns(c10::SymIntArrayRef size, Channels channels);

at::Tensor pack_columns(const at::Tensor& tensor, Channels channels, const ColumnQuantization& quantization,
                        const std::optional<at::Tensor>& rng_state = std::nullopt);

/// `weight` and `bias`: as of `dequantize_columns`.
at::Tensor unpack_columns(const at::Tensor& packed, c10::SymIntArrayRef size, Channels channels, at::ScalarType dtype,
                          const ColumnQuantization& quantization,
                          const std::optional<at::Tensor>& weight = std::nullopt,
                          const std::optional<at::Tensor>& bias = std::nullopt);

/// How a tensor is packed with one bit width.
struct PackedForm {
  int64_t bits;
  int64_t group_size;                  ///< rows of a group in columns
  std::optional<Channels> in_columns;  ///< else in storage order
};

/// A tensor of that size and those strides, which are the order of storage in which it was packed.
at::Tensor unpack(const at::Tensor& packed, const PackedForm& form, c10::SymIntArrayRef size,
                  c10::SymIntArrayRef stride, at::ScalarType dtype);

}  // namespace actnn
