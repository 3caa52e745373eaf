#pragma once

#include <cstdint>

#include "actnn/core/columns.h"

/// \file
/// How work on a matrix in column groups (core/columns.h) is cut into *pieces*: all rows of a block, and some channels.
/// Pieces are independent: any division of them among threads gives the same results.

namespace actnn::cpu {

/// Channels of a piece: even, because two neighbouring channels share their noise.
inline constexpr int64_t kPieceChannels = 64;

template <class Int>
constexpr int64_t pieces_across(const ColumnLayout<Int>& layout) {
  return ceil_div(layout.channels, kPieceChannels);
}
/// Piece i is of block i / pieces_across, and of channels from i % pieces_across * kPieceChannels on.
template <class Int>
constexpr int64_t column_pieces(const ColumnLayout<Int>& layout) {
  return layout.blocks() * pieces_across(layout);
}

}  // namespace actnn::cpu
