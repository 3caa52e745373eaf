#pragma once

#include <cstdint>

#include "actnn/core/layout.h"
#include "actnn/core/philox.h"
#include "actnn/core/rounding.h"
#include "actnn/core/scalar_types.h"

/// \file
/// Quantization and dequantization of one segment (core/layout.h) on the CPU. Groups are independent: any division of a
/// segment's groups among threads gives the same bytes. No function here allocates, throws or knows a tensor. The
/// header is the caller's.

namespace actnn::cpu {

/// One segment and the noise it is rounded with.
struct QuantizeSegment {
  const void* elements;  ///< `count` elements of `type`, in storage order
  ElementType type;
  int64_t count;
  int64_t group_size;   ///< a multiple of 32
  int bits;             ///< 1..8
  uint8_t* parameters;  ///< out: 4 bytes a group
  uint8_t* codes;       ///< out: code_bytes(count, bits)
  RandomState random;
  uint64_t first_octet;  ///< number of this segment's first octet; even
  Rounding rounding;     ///< `kNearest`: `random` is unused
};

struct DequantizeSegment {
  PackedHeader header;
  const uint8_t* parameters;
  const uint8_t* codes;
  int64_t count;
  int64_t group_size;
  int bits;
  ElementType type;
  uint64_t first_octet;
  void* elements;  ///< out
};

/// Packs groups [first_group, last_group). The noise of element i is byte i % 8 of
/// `random.octet(first_octet + i / 8)`.
void quantize_groups(const QuantizeSegment& segment, int64_t first_group, int64_t last_group);

/// Unpacks groups [first_group, last_group). Groups marked unrepresentable become the canonical NaN, and so do elements
/// with the code for NaN.
void dequantize_groups(const DequantizeSegment& segment, int64_t first_group, int64_t last_group);

namespace reference {

/// The definition of the format, one element after the other.
void quantize_groups(const QuantizeSegment& segment, int64_t first_group, int64_t last_group);
void dequantize_groups(const DequantizeSegment& segment, int64_t first_group, int64_t last_group);

}  // namespace reference
}  // namespace actnn::cpu
