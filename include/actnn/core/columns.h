#pragma once

#include <cstdint>

#include "actnn/core/host_device.h"
#include "actnn/core/layout.h"

/// \file
/// Where things lie in a packed matrix of rows x channels (row-major: a channels_last tensor, or [..., channels]) whose
/// groups are *columns*: one channel of 64, 128 or 256 neighbouring rows. Channels of different scales then have grids
/// of their own, and the codes of a channel are contiguous along the rows, as a product that sums over rows reads them.
///
///     | header | parameters of groups (2 x 2) | padding to 16 bytes | codes | sides | on slope |
///
/// Rows [block * group_rows, ...) are a *block*, whose last may be short; group block * channels + channel is channel
/// `channel` of it. The rows of a block are octets, rounded up to whole *words* of 4 octets, with zeros for rows that
/// do not exist:
///
///     codes     of group 0, group 1, ...: octets of rows, of b bytes each (core/bit_packing.h)
///     a mask    likewise with 1 bit an element; there are as many masks as the packed form has (core/sides.h)
///
/// The noise of row r and channel c: byte r % 8 of half c % 2 of Philox block (r / 8) * ceil(channels / 2) + c / 2. It
/// depends on neither bits nor group_rows.

namespace actnn {

inline constexpr int64_t kDefaultGroupRows = 256;
inline constexpr int64_t kWordOctets = 4;
inline constexpr int64_t kWordRows = kWordOctets * kOctet;

ACTNN_HOST_DEVICE constexpr bool is_group_rows(int64_t rows) { return rows == 64 || rows == 128 || rows == 256; }
/// The binary logarithm of such a number.
ACTNN_HOST_DEVICE constexpr int group_rows_log2(int64_t rows) { return rows == 64 ? 6 : rows == 128 ? 7 : 8; }

/// Sizes are templates over the integer type, as in core/layout.h.
template <class Int>
struct ColumnLayout {
  Int rows;
  int64_t channels;
  int64_t group_rows = kDefaultGroupRows;
  int bits = 0;   ///< of codes, 1..8; 0: there are none, and no parameters
  int masks = 0;  ///< of 1 bit an element

  constexpr Int blocks() const { return ceil_div(rows, group_rows); }
  constexpr Int groups() const { return bits == 0 ? Int(0) : Int(blocks() * channels); }
  /// Bytes of codes per bit of all elements, also of a mask: 4 a word.
  constexpr Int plane_bytes() const { return ceil_div(rows, kWordRows) * (kWordOctets * channels); }

  constexpr Int codes() const { return codes_offset(groups()); }
  constexpr Int mask(int number) const { return codes() + plane_bytes() * (int64_t{bits} + number); }
  constexpr Int bytes() const { return mask(masks); }

  /// Where the octets of a group begin among codes of `width` bits, or a mask's of 1 bit.
  ACTNN_HOST_DEVICE constexpr int64_t group_offset(int64_t block, int64_t channel, int width) const {
    return (block * group_rows / kOctet * channels + channel * block_octets(block)) * width;
  }
  /// Rows of a block.
  ACTNN_HOST_DEVICE constexpr int64_t block_rows(int64_t block) const {
    const int64_t left = rows - block * group_rows;
    return left < group_rows ? left : group_rows;
  }
  /// Octets of a block that are stored.
  ACTNN_HOST_DEVICE constexpr int64_t block_octets(int64_t block) const {
    return (block_rows(block) + kWordRows - 1) / kWordRows * kWordOctets;
  }

  /// The number of the octet of rows 8 `row_octet`, ... of a channel, for `RandomState::octet`.
  ACTNN_HOST_DEVICE constexpr uint64_t noise_octet(int64_t row_octet, int64_t channel) const {
    return static_cast<uint64_t>(row_octet * (channels + channels % 2) + channel);
  }
};

}  // namespace actnn
