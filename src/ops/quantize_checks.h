#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <optional>

#include "actnn/core/scalar_types.h"

/// \file
/// The argument checks of quantize and dequantize, for every device.

namespace actnn {

ElementType check_quantize(const at::Tensor& input, int64_t bits, int64_t group_size,
                           const std::optional<at::Tensor>& rng_state);

ElementType check_dequantize(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                             at::ScalarType dtype, int64_t bits, int64_t group_size);

}  // namespace actnn
