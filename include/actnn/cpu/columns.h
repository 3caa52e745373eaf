#pragma once

#include <cstdint>

#include "actnn/core/columns.h"
#include "actnn/core/philox.h"
#include "actnn/core/rounding.h"
#include "actnn/core/scalar_types.h"
#include "actnn/cpu/column_pieces.h"

/// \file
/// Quantization and dequantization of a row-major matrix in column groups (core/columns.h) on the CPU, in pieces
/// (column_pieces.h): any division of them among threads gives the same bytes. No function here allocates, throws or
/// knows a tensor. The header, and the padding between parameters and codes, are the caller's.

namespace actnn::cpu {

/// One matrix and the noise it is rounded with.
struct QuantizeColumns {
  const void* elements;  ///< [rows, channels] of `type`, row-major without gaps
  ElementType type;
  ColumnLayout<int64_t> layout;  ///< 1..8 bits
  uint8_t* parameters;           ///< out: 4 bytes a group
  uint8_t* codes;                ///< out: bits * layout.plane_bytes()
  RandomState random;
  Rounding rounding;  ///< `kNearest`: `random` is unused
};

struct DequantizeColumns {
  PackedHeader header;
  const uint8_t* parameters;
  const uint8_t* codes;
  ColumnLayout<int64_t> layout;
  ElementType type;
  void* elements;  ///< out
};

/// Packs pieces [first, last). Bits of rows that do not exist are zero.
void quantize_columns(const QuantizeColumns& matrix, int64_t first, int64_t last);

/// Unpacks pieces [first, last). Groups marked unrepresentable become the canonical NaN, and so do elements with the
/// code for NaN.
void dequantize_columns(const DequantizeColumns& matrix, int64_t first, int64_t last);

namespace reference {

/// The definition of the format, one element after the other.
void quantize_columns(const QuantizeColumns& matrix, int64_t first, int64_t last);
void dequantize_columns(const DequantizeColumns& matrix, int64_t first, int64_t last);

}  // namespace reference
}  // namespace actnn::cpu
