#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include "actnn/core/scalar_types.h"

/// \file
/// The argument checks of the mask ops, for every device.

namespace actnn {

void check_pack_mask(const at::Tensor& mask);
void check_unpack_mask(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride);
ElementType check_relu_pack(const at::Tensor& input);
ElementType check_relu_pack_in_place(const at::Tensor& input);
ElementType check_apply_mask(const at::Tensor& input, const at::Tensor& mask, c10::SymIntArrayRef stride);

}  // namespace actnn
