// Pieces of a matrix in column groups, in vectors whose lanes are channels. Included once per instruction set
// (Highway's foreach_target), hence the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_PIECES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_PIECES_INL_H_
#undef ACTNN_CPU_PIECES_INL_H_
#else
#define ACTNN_CPU_PIECES_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "actnn/cpu/column_pieces.h"
#include "src/cpu/column_words-inl.h"
#include "src/cpu/matrix-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

inline constexpr int64_t kPieceVectors = kPieceChannels / kLanes;
static_assert(kPieceChannels % kLanes == 0);

/// Rows between an element that is read and the one that is asked for meanwhile: the processor does not foresee loads
/// that are a row apart.
inline constexpr int64_t kRowsAhead = 64;

/// From elements of an octet of rows of a piece to those that are asked for meanwhile, perhaps of the next piece.
inline int64_t elements_ahead(const ColumnLayout<int64_t>& layout, const ColumnPiece& piece, int64_t octet) {
  const int64_t ahead = kRowsAhead * layout.channels;
  const bool inside = octet * kOctet + kRowsAhead < piece.rows;
  return inside ? ahead : ahead + piece.distance_of_next(layout) - piece.rows * layout.channels;
}

/// The elements of the next piece, which are asked for while one is encoded: that computes much and loads nothing. In
/// bursts, which the processor fetches faster. A narrow last piece asks for as many channels of the next as it has.
class NextPiece {
 public:
  NextPiece() = default;
  template <class Element>
  NextPiece(const ColumnLayout<int64_t>& layout, const ColumnPiece& piece, const Element* elements)
      : elements_(reinterpret_cast<const uint8_t*>(elements)),
        element_bytes_(sizeof(Element)),
        row_bytes_(layout.channels * element_bytes_),
        begin_((piece.first_row * layout.channels + piece.first_channel + piece.distance_of_next(layout)) *
               element_bytes_) {}

  /// Asks for a word of rows of the vector of channels from number `channel` on.
  HWY_INLINE void ask_for(int64_t word, int64_t channel) const {
    const int64_t offset = channel * element_bytes_;
    if (elements_ && offset % kCacheLine == 0) {
      for (int64_t row = word * kWordRows; row < (word + 1) * kWordRows; ++row) {
        prefetch(elements_, begin_ + row * row_bytes_ + offset);
      }
    }
  }

 private:
  const uint8_t* elements_ = nullptr;  ///< null: nothing is asked for
  int64_t element_bytes_ = 0;
  int64_t row_bytes_ = 0;
  int64_t begin_ = 0;
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

/// Stores them; `around_cache` (`streams`) there are only whole vectors.
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
