#pragma once

#include <algorithm>
#include <cstdint>

#include "actnn/core/columns.h"

/// \file
/// How work on a matrix in column groups (core/columns.h) is cut into *pieces*: all rows of a block, and channels that
/// lie side by side in memory. Pieces are independent: any division of them among threads gives the same results.

namespace actnn::cpu {

/// Channels of a piece: even, because two neighbouring channels share their noise. Few channels of a wide matrix would
/// be short parts of memory, which the processor fetches slowly.
inline constexpr int64_t kPieceChannels = 64;

template <class Int>
constexpr int64_t pieces_across(const ColumnLayout<Int>& layout) {
  return ceil_div(layout.channels, kPieceChannels);
}
template <class Int>
constexpr int64_t column_pieces(const ColumnLayout<Int>& layout) {
  return layout.blocks() * pieces_across(layout);
}

/// Pieces are numbered block by block.
struct ColumnPiece {
  int64_t block;
  int64_t first_row;
  int64_t rows;
  int64_t first_channel;
  int64_t channels;

  constexpr ColumnPiece(const ColumnLayout<int64_t>& layout, int64_t number)
      : block(number / pieces_across(layout)),
        first_row(block * layout.group_rows),
        rows(layout.block_rows(block)),
        first_channel(number % pieces_across(layout) * kPieceChannels),
        channels(std::min(kPieceChannels, layout.channels - first_channel)) {}

  constexpr int64_t words() const { return ceil_div(rows, kWordRows); }

  /// How far the elements of the next piece are behind those of this one.
  constexpr int64_t distance_of_next(const ColumnLayout<int64_t>& layout) const {
    return first_channel + channels == layout.channels ? rows * layout.channels - first_channel : kPieceChannels;
  }
};

}  // namespace actnn::cpu
