#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <c10/util/string_view.h>

#include <optional>

#include "actnn/core/columns.h"
#include "actnn/core/rounding.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The argument checks of quantize_columns and dequantize_columns, for every device, and what they read from the
/// arguments.

namespace actnn {

/// How a matrix is packed in column groups. Of the sizes, that of the rows may be a symbol.
struct QuantizedColumns {
  ElementType type;
  Rounding rounding;
  ColumnLayout<c10::SymInt> layout;
};

QuantizedColumns check_quantize_columns(const at::Tensor& input, int64_t bits, int64_t group_rows,
                                        c10::string_view rounding, const std::optional<at::Tensor>& rng_state);

struct DequantizedColumns {
  ElementType type;
  ColumnLayout<c10::SymInt> layout;
};

DequantizedColumns check_dequantize_columns(const at::Tensor& packed, const c10::SymInt& rows,
                                            const c10::SymInt& channels, at::ScalarType dtype, int64_t bits,
                                            int64_t group_rows, const std::optional<at::Tensor>& weight,
                                            const std::optional<at::Tensor>& bias);

/// The layout of a matrix with data.
inline ColumnLayout<int64_t> with_data(const ColumnLayout<c10::SymInt>& layout) {
  return {layout.rows.expect_int(), layout.channels, layout.group_rows, layout.bits, layout.masks};
}

}  // namespace actnn
