// Codes of column groups by words of 32 rows, in vectors whose lanes are channels. Included once per instruction set
// (Highway's foreach_target), hence the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_COLUMN_WORDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_COLUMN_WORDS_INL_H_
#undef ACTNN_CPU_COLUMN_WORDS_INL_H_
#else
#define ACTNN_CPU_COLUMN_WORDS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "actnn/core/columns.h"
#include "src/cpu/columns-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

inline constexpr int64_t kMostRows = 256;  ///< of a block
inline constexpr int64_t kMostWords = kMostRows / kWordRows;

/// The codes of 32 rows of a channel are `width` 32-bit words of one stream: that of row r is in bits [r width,
/// (r + 1) width), also across the ends of words. A mask has 1 bit a row: row r's is bit r.
///
/// Packed, the words of a channel lie side by side. Vectors want those of neighbouring channels there: a `WordTile` is
/// the transpose.
template <int kMostWidth, int64_t kChannels>
struct WordTile {
  HWY_ALIGN uint32_t words[kMostWidth][kChannels];

  template <int kWidth>
  HWY_INLINE void write_channel(int64_t channel, uint8_t* HWY_RESTRICT packed) const {
    for (int i = 0; i < kWidth; ++i) {
      std::memcpy(packed + i * sizeof(uint32_t), &words[i][channel], sizeof(uint32_t));
    }
  }
  template <int kWidth>
  HWY_INLINE void read_channel(int64_t channel, const uint8_t* HWY_RESTRICT packed) {
    for (int i = 0; i < kWidth; ++i) {
      std::memcpy(&words[i][channel], packed + i * sizeof(uint32_t), sizeof(uint32_t));
    }
  }
};

/// Adds the code of row kRow, which is at kNoiseBits of lanes that have other bits too, to words that begin as zeros.
template <int kBits, int kRow>
HWY_INLINE void put_code(Word32Vector noisy, Word32Vector (&words)[kBits]) {
  const Word32Tag d32;
  constexpr int kWord = kRow * kBits / 32;
  constexpr int kPlace = kRow * kBits % 32;
  const auto code = hn::And(shift_up<kPlace - kNoiseBits>(noisy), hn::Set(d32, highest_code(kBits) << kPlace));
  words[kWord] = hn::Or(words[kWord], code);
  if constexpr (kPlace + kBits > 32) {
    constexpr int kStored = 32 - kPlace;
    const auto rest =
        hn::And(hn::ShiftRight<kNoiseBits + kStored>(noisy), hn::Set(d32, highest_code(kBits) >> kStored));
    words[kWord + 1] = hn::Or(words[kWord + 1], rest);
  }
}

/// The code of row kRow at kNoiseBits of lanes of which nothing else is set.
template <int kBits, int kRow>
HWY_INLINE Word32Vector get_code(const Word32Vector (&words)[kBits]) {
  const Word32Tag d32;
  constexpr int kWord = kRow * kBits / 32;
  constexpr int kPlace = kRow * kBits % 32;
  auto code = shift_up<kNoiseBits - kPlace>(words[kWord]);
  if constexpr (kPlace + kBits > 32) {
    code = hn::Or(code, hn::ShiftLeft<kNoiseBits + 32 - kPlace>(words[kWord + 1]));
  }
  return hn::And(code, hn::Set(d32, highest_code(kBits) << kNoiseBits));
}

/// The bits of word `word` of a stream of `width` bits a row that rows [0, rows) have.
HWY_INLINE uint32_t bits_of_rows(int64_t rows, int width, int word) {
  const int64_t bits = std::clamp<int64_t>(rows * width - word * 32, 0, 32);
  return static_cast<uint32_t>((uint64_t{1} << bits) - 1);
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
