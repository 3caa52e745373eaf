#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <optional>

#include "actnn/core/scalar_types.h"

/// \file
/// Argument checks that several ops share. Every failure is a sentence that names the op, the argument, what it must be
/// and what it was.

namespace actnn {

/// The element type of `tensor`; an error unless it is strided, of one of the three floating types, and without a
/// forward-mode derivative, which would be lost.
ElementType check_floating(const char* op, const char* argument, const at::Tensor& tensor);

/// Whether tensors of this type have a compressed form: float32, float16, bfloat16.
inline bool is_compressible(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
}

at::ScalarType scalar_type_of(ElementType type);
ElementType check_element_type(const char* op, at::ScalarType dtype);

void check_bits(const char* op, int64_t bits);
void check_group_size(const char* op, int64_t group_size);

/// None, or an int64 tensor of two elements on `device`.
void check_rng_state(const char* op, const std::optional<at::Tensor>& rng_state, c10::Device device);

/// A 1-D contiguous uint8 tensor of exactly `bytes` bytes.
void check_packed(const char* op, const char* argument, const at::Tensor& packed, const c10::SymInt& bytes);

/// Sizes and strides of a dense tensor: not negative, as many strides as sizes, every element at its own place and no
/// gaps.
void check_dense(const char* op, c10::SymIntArrayRef size, c10::SymIntArrayRef stride);

}  // namespace actnn
