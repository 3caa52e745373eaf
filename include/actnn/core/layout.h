#pragma once

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/host_device.h"
#include "actnn/core/philox.h"
#include "actnn/core/rounding.h"

/// \file
/// Where things lie in a packed activation. Sizes are templates over the integer type, so that symbolic sizes go
/// through the same formulas.
///
///     | header       | group parameters                          | padding to 16 bytes | codes                       |
///     | seed, offset | minimum0 step0 minimum1 step1 ... (2 x 2) |                     | segment 0 | segment 1 | ... |
///
/// The header is the random state that the codes were rounded with, and whether its noise is subtracted.
///
/// A *segment* is a run of elements (in storage order) with one bit width: the whole tensor, or one sample where every
/// sample has its own. It is cut into groups of `group_size`; the last group may be short, and its last octet is filled
/// up with zero codes. Each segment's codes begin at a multiple of 4 bytes.

namespace actnn {

/// The version of the packed format (docs/format.md): of everything that is packed by this library.
inline constexpr int kFormatVersion = 2;

inline constexpr int64_t kDefaultGroupSize = 256;
inline constexpr int64_t kGroupSizeMultiple = 32;
inline constexpr int64_t kCodesAlignment = 16;
inline constexpr int64_t kSegmentAlignment = 4;

template <class Int>
constexpr Int ceil_div(const Int& value, int64_t divisor) {
  return (value + (divisor - 1)) / divisor;
}

template <class Int>
constexpr Int align_up(const Int& value, int64_t alignment) {
  return ceil_div(value, alignment) * alignment;
}

/// What a packed activation begins with.
struct alignas(16) PackedHeader {
  uint64_t seed;
  uint64_t offset;  ///< the sign: no noise is subtracted

  static constexpr uint64_t kUndithered = uint64_t{1} << 63;

  ACTNN_HOST_DEVICE static constexpr PackedHeader of(const RandomState& random, Rounding rounding) {
    const uint64_t offset = random.offset & ~kUndithered;
    return {random.seed, subtracts_noise(rounding) ? offset : offset | kUndithered};
  }
  ACTNN_HOST_DEVICE constexpr bool dithered() const { return (offset & kUndithered) == 0; }
  /// What the codes were rounded with.
  ACTNN_HOST_DEVICE constexpr RandomState random() const { return {seed, offset & ~kUndithered}; }
};
inline constexpr int64_t kHeaderBytes = sizeof(PackedHeader);
static_assert(kHeaderBytes == 16);

/// Groups of a segment.
template <class Int>
constexpr Int group_count(const Int& elements, int64_t group_size) {
  return ceil_div(elements, group_size);
}

/// Bytes of a segment's codes, without alignment.
template <class Int>
constexpr Int code_bytes(const Int& elements, int bits) {
  return ceil_div(elements, kOctet) * static_cast<int64_t>(bits);
}

/// Room for the codes of segments of `elements` elements each, whose bits add up to `total_bits`, with their alignment.
template <class Int>
constexpr Int segments_code_bytes(const Int& elements, const Int& segments, const Int& total_bits) {
  return ceil_div(elements, kOctet) * total_bits + segments * (kSegmentAlignment - 1);
}

/// Offset of the codes in a packed activation with `groups` groups in all.
template <class Int>
constexpr Int codes_offset(const Int& groups) {
  return align_up(groups * static_cast<int64_t>(sizeof(GroupParameters)), kCodesAlignment) + kHeaderBytes;
}

/// The number of the first octet of a sample of so many elements, which decides its noise: samples begin at whole
/// Philox blocks.
constexpr uint64_t first_octet_of_sample(int64_t sample, int64_t elements) {
  return static_cast<uint64_t>(sample) * static_cast<uint64_t>(align_up(ceil_div(elements, kOctet), 2));
}

/// Bytes of a packed activation of one segment.
template <class Int>
constexpr Int packed_bytes(const Int& elements, int bits, int64_t group_size) {
  return codes_offset(group_count(elements, group_size)) + code_bytes(elements, bits);
}

/// Bytes of a packed bool tensor: 8 elements a byte.
template <class Int>
constexpr Int mask_bytes(const Int& elements) {
  return ceil_div(elements, kOctet);
}

}  // namespace actnn
