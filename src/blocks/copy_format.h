#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <vector>

#include "actnn/blocks/plan.h"

/// \file
/// How an unbiased copy of a value is kept, and unpacked.

namespace actnn::blocks {

/// The strides of a dense tensor of this layout.
std::vector<c10::SymInt> strides_of(c10::SymIntArrayRef size, Layout layout);

/// `tensor` stored in this layout; a copy unless it is.
at::Tensor in_layout(const at::Tensor& tensor, Layout layout);

/// Whether a copy of this format is packed as rows of the last dimension, in columns.
bool is_rows_in_columns(const CopyFormat& format, c10::SymIntArrayRef size, Layout layout);

/// The tensors of a copy of `value`, which is dense in its layout; not of those of passes, which the pass that makes
/// the value packs.
std::vector<at::Tensor> pack_copy(const at::Tensor& value, const CopyFormat& format, Layout layout, Rounding rounding);

/// The dtype that a copy of a value of dtype `packed` is unpacked in for who wants it in `wanted`: that, if the numbers
/// of its grids are of the same kind.
at::ScalarType decoding_dtype(at::ScalarType packed, at::ScalarType wanted);

/// The copy, of this size, layout and dtype.
at::Tensor unpack_copy(const std::vector<at::Tensor>& tensors, const CopyFormat& format, c10::SymIntArrayRef size,
                       Layout layout, at::ScalarType dtype);
/// ... times `weight`, plus `bias`: of the last dimensions, or, in channels_last, of channels.
at::Tensor unpack_affine_copy(const std::vector<at::Tensor>& tensors, const CopyFormat& format,
                              c10::SymIntArrayRef size, Layout layout, at::ScalarType dtype,
                              const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias);

}  // namespace actnn::blocks
