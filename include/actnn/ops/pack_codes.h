#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

/// \file
/// Packing of existing codes, without ranges and rounding: for callers with a quantizer of their own. The stream has no
/// parameters: sample s's codes fill ceil(elements / 8) * bits[s] bytes (core/bit_packing.h) right after those of
/// sample s - 1. Work on CPU, CUDA and Meta with symbolic sizes and give the same bytes on all; no wait for the device;
/// deterministic; not differentiable.
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes, shapes or devices; a stream of a wrong size. On the CPU also
/// bits outside 1..8; on CUDA, where the host does not see the bits, the bytes are then unspecified, but only the
/// stream's memory is read or written.

namespace actnn {

/// Packs `codes`, uint8 [N, elements], code of sample s below 2^bits[s] (higher bits are ignored), with `bits`, uint8
/// [N], into a 1-D uint8 tensor of `bytes` bytes: ceil(elements / 8) times the sum of `bits`.
at::Tensor pack_codes(const at::Tensor& codes, const at::Tensor& bits, const c10::SymInt& bytes);

/// The inverse: uint8 [N, elements] from the stream.
at::Tensor unpack_codes(const at::Tensor& packed, const at::Tensor& bits, const c10::SymInt& elements);

}  // namespace actnn
