#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/string_view.h>

#include <optional>

#include "actnn/core/layout.h"
#include "actnn/core/scalar_types.h"
#include "src/ops/quantize_checks.h"

/// \file
/// What quantize_per_sample and dequantize_per_sample check and compute for every device.

namespace actnn {

template <class Int>
Int elements_per_sample(const Int& count, const Int& samples) {
  return samples == 0 ? Int(0) : count / samples;
}

/// Groups of all samples.
template <class Int>
Int all_groups(const Int& count, const Int& samples, int64_t group_size) {
  return samples * group_count(elements_per_sample(count, samples), group_size);
}

QuantizedAs check_quantize_per_sample(const at::Tensor& input, const at::Tensor& bits, const c10::SymInt& code_bytes,
                                      int64_t group_size, c10::string_view rounding,
                                      const std::optional<at::Tensor>& rng_state);

ElementType check_dequantize_per_sample(const at::Tensor& packed, const at::Tensor& bits, c10::SymIntArrayRef size,
                                        c10::SymIntArrayRef stride, at::ScalarType dtype, int64_t group_size);

}  // namespace actnn
