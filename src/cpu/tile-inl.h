// Pieces of a matrix in column groups, whose vectors are channels of a row. Included once per instruction set
// (Highway's foreach_target), hence the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_TILE_INL_H_
#undef ACTNN_CPU_TILE_INL_H_
#else
#define ACTNN_CPU_TILE_INL_H_
#endif

#include <hwy/cache_control.h>

#include <algorithm>
#include <cstdint>

#include "actnn/cpu/column_pieces.h"
#include "src/cpu/column_words-inl.h"
#include "src/cpu/matrix-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

inline constexpr int64_t kPieceVectors = kPieceChannels / kLanes;

/// Rows between an element that is read and the one that is asked for meanwhile: the processor does not foresee loads
/// that are a row apart.
inline constexpr int64_t kRowsAhead = 64;

/// A piece: all rows of a block, and channels that lie side by side in memory. Rows of few channels would be many short
/// parts of memory, which the processor fetches slowly.
struct Tile {
  int64_t block;
  int64_t first_row;
  int64_t rows;
  int64_t first_channel;
  int64_t channels;

  Tile(const ColumnLayout<int64_t>& layout, int64_t piece)
      : block(piece / pieces_across(layout)),
        first_row(block * layout.group_rows),
        rows(layout.block_rows(block)),
        first_channel(piece % pieces_across(layout) * kPieceChannels),
        channels(std::min(kPieceChannels, layout.channels - first_channel)) {}

  int64_t words() const { return ceil_div(rows, kWordRows); }

  /// How far the elements of the next piece are behind those of this one.
  int64_t distance_of_next(const ColumnLayout<int64_t>& layout) const {
    return first_channel + channels == layout.channels ? rows * layout.channels - first_channel : kPieceChannels;
  }
  /// From elements of an octet of rows to those that are asked for meanwhile, perhaps of the next piece.
  int64_t ahead(const ColumnLayout<int64_t>& layout, int64_t octet) const {
    const int64_t beyond = octet * kOctet + kRowsAhead < rows ? 0 : distance_of_next(layout) - rows * layout.channels;
    return kRowsAhead * layout.channels + beyond;
  }
};

/// Asks for an element `ahead` of another one. Beyond the end of a matrix this does nothing.
template <class Element>
HWY_INLINE void prefetch(const Element* p, int64_t ahead) {
  hwy::Prefetch(reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(p) +
                                                 static_cast<uintptr_t>(ahead) * sizeof(Element)));
}

/// The elements of the next tile, which are asked for while one is encoded: that computes much and loads nothing. The
/// processor fetches them faster in bursts.
class NextTile {
 public:
  NextTile() = default;
  template <class Element>
  NextTile(const ColumnLayout<int64_t>& layout, const Tile& tile, const Element* elements)
      : element_bytes_(sizeof(Element)),
        row_bytes_(layout.channels * element_bytes_),
        begin_(reinterpret_cast<uintptr_t>(elements) +
               static_cast<uintptr_t>(
                   (tile.first_row * layout.channels + tile.first_channel + tile.distance_of_next(layout)) *
                   element_bytes_)) {}

  /// Asks for a word of rows of the vector of channels from number `channel` on. Beyond the end of a matrix this does
  /// nothing.
  HWY_INLINE void prefetch(int64_t word, int64_t channel) const {
    const int64_t offset = channel * element_bytes_;
    if (row_bytes_ != 0 && offset % kCacheLine == 0) {
      for (int64_t row = word * kWordRows; row < (word + 1) * kWordRows; ++row) {
        hwy::Prefetch(reinterpret_cast<const uint8_t*>(begin_ + static_cast<uintptr_t>(row * row_bytes_ + offset)));
      }
    }
  }

 private:
  int64_t element_bytes_ = 0;
  int64_t row_bytes_ = 0;  ///< 0: nothing is asked for
  uintptr_t begin_ = 0;
};

/// Loads `lanes` elements, at most a vector. What is in the lanes beyond them means nothing.
template <class Element>
HWY_INLINE FloatVector load_lanes(const Element* p, int64_t lanes) {
  if (HWY_LIKELY(lanes >= kLanes)) {
    return load_floats(p);
  }
  if (2 * lanes == kLanes) {
    return hn::ZeroExtendVector(FloatTag(), load_floats(hn::Half<FloatTag>(), p));
  }
  HWY_ALIGN Element padded[kLanes] = {};
  std::copy_n(p, lanes, padded);
  return load_floats(padded);
}

/// Stores them, whole vectors `around_cache` on request.
template <class Element>
HWY_INLINE void store_lanes(FloatVector values, Element* p, int64_t lanes, bool around_cache = false) {
  const hn::Half<FloatTag> half;
  if (around_cache) {
    store_floats(values, p, StoreStreaming());
  } else if (HWY_LIKELY(lanes >= kLanes)) {
    store_floats(values, p);
  } else if (2 * lanes == kLanes) {
    store_floats(half, hn::LowerHalf(half, values), p, StoreCached());
  } else {
    HWY_ALIGN Element padded[kLanes];
    store_floats(values, padded);
    std::copy_n(padded, lanes, p);
  }
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
