#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/string_view.h>

#include <optional>

#include "actnn/core/rounding.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The argument checks of quantize and dequantize, for every device, and what they read from the arguments.

namespace actnn {

struct QuantizedAs {
  ElementType type;
  Rounding rounding;
};

QuantizedAs check_quantize(const at::Tensor& input, int64_t bits, int64_t group_size, c10::string_view rounding,
                           const std::optional<at::Tensor>& rng_state);

ElementType check_dequantize(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                             at::ScalarType dtype, int64_t bits, int64_t group_size);

}  // namespace actnn
