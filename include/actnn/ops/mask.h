#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <tuple>

/// \file
/// 1-bit masks, packed in storage order: element i in bit i % 8 of byte i / 8, unused bits 0. Work on CPU, CUDA
/// and Meta, with symbolic sizes, and give the same bits on all; deterministic; not differentiable except `apply_mask`.

namespace actnn {

/// Packs a bool tensor of any shape into ceil(elements / 8) bytes.
at::Tensor pack_mask(const at::Tensor& mask);

/// Unpacks into a bool tensor of this size and (dense) stride.
at::Tensor unpack_mask(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride);

/// ReLU of a float32, float16 or bfloat16 tensor, and the packed mask of where its gradient passes (not <= 0). The
/// output has the strides of the input if that is dense, else contiguous ones; the mask is in the output's storage
/// order.
std::tuple<at::Tensor, at::Tensor> relu_pack(const at::Tensor& input);

/// The same in place; returns the mask. `input` must be dense.
at::Tensor relu_pack_(at::Tensor& input);

/// `input` where the mask's bit is set, else 0. `stride` is the stride of the tensor that the mask was packed from; the
/// result has it too. Differentiable in `input`, any number of times.
at::Tensor apply_mask(const at::Tensor& input, const at::Tensor& mask, c10::SymIntArrayRef stride);

}  // namespace actnn
