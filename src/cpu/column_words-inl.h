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

inline constexpr int64_t kLanes = hn::MaxLanes(FloatTag());

/// Words of a channel that move together.
inline constexpr int64_t kQuad = 4;

/// Transposes the 4 x 4 words that are in the same 128-bit block of four vectors.
HWY_INLINE void transpose_quads(Word32Vector (&v)[kQuad]) {
  const Word32Tag d32;
  const Word64Tag d64;
  const auto lower01 = hn::BitCast(d64, hn::InterleaveLower(d32, v[0], v[1]));
  const auto lower23 = hn::BitCast(d64, hn::InterleaveLower(d32, v[2], v[3]));
  const auto upper01 = hn::BitCast(d64, hn::InterleaveUpper(d32, v[0], v[1]));
  const auto upper23 = hn::BitCast(d64, hn::InterleaveUpper(d32, v[2], v[3]));
  v[0] = hn::BitCast(d32, hn::InterleaveLower(d64, lower01, lower23));
  v[1] = hn::BitCast(d32, hn::InterleaveUpper(d64, lower01, lower23));
  v[2] = hn::BitCast(d32, hn::InterleaveLower(d64, upper01, upper23));
  v[3] = hn::BitCast(d32, hn::InterleaveUpper(d64, upper01, upper23));
}

/// Loads a quad of every fourth channel, a 128-bit block each.
template <class Tag>
HWY_INLINE hn::Vec<Tag> load_quads(Tag d, const uint8_t* HWY_RESTRICT packed, int64_t channel_bytes) {
  if constexpr (hn::MaxLanes(d) == kQuad) {
    return hn::LoadU(d, reinterpret_cast<const uint32_t*>(packed));
  } else {
    const hn::Half<Tag> half;
    const auto lower = load_quads(half, packed, channel_bytes);
    return hn::Combine(
        d, load_quads(half, packed + static_cast<int64_t>(hn::MaxLanes(half)) * channel_bytes, channel_bytes), lower);
  }
}
template <class Tag>
HWY_INLINE void store_quads(Tag d, hn::Vec<Tag> quads, uint8_t* HWY_RESTRICT packed, int64_t channel_bytes) {
  if constexpr (hn::MaxLanes(d) == kQuad) {
    hn::StoreU(quads, d, reinterpret_cast<uint32_t*>(packed));
  } else {
    const hn::Half<Tag> half;
    store_quads(half, hn::LowerHalf(half, quads), packed, channel_bytes);
    store_quads(half, hn::UpperHalf(half, quads), packed + static_cast<int64_t>(hn::MaxLanes(half)) * channel_bytes,
                channel_bytes);
  }
}

/// The codes of 32 rows of a channel are `width` 32-bit words of one stream: that of row r is in bits [r width,
/// (r + 1) width), also across the ends of words. A mask has 1 bit a row: row r's is bit r.
///
/// Packed, the words of a channel lie side by side. Vectors want those of neighbouring channels there: these are the
/// words of a block of a vector of channels in that order.
template <int kMostWidth>
struct BlockWords {
  HWY_ALIGN uint32_t words[kMostWords * kMostWidth][kLanes];

  /// Reads `count` words of each of `channels` channels, or of the first kLanes. Lanes without a channel repeat others.
  void read(const uint8_t* HWY_RESTRICT packed, int64_t channel_bytes, int64_t channels, int64_t count) {
    const int64_t whole = channels >= kLanes ? count / kQuad * kQuad : 0;
    for (int64_t first = 0; first < whole; first += kQuad) {
      read_quads(packed + first * kWordBytes, channel_bytes, first);
    }
    for (int64_t first = whole; first < count; first += kQuad) {
      const auto bytes = static_cast<size_t>(std::min(kQuad, count - first) * kWordBytes);
      uint8_t padded[kLanes * kQuadBytes] = {};
      for (int64_t channel = 0; channel < std::min(channels, kLanes); ++channel) {
        std::memcpy(padded + channel * kQuadBytes, packed + channel * channel_bytes + first * kWordBytes, bytes);
      }
      read_quads(padded, kQuadBytes, first);
    }
  }

  /// Writes them.
  void write(uint8_t* HWY_RESTRICT packed, int64_t channel_bytes, int64_t channels, int64_t count) const {
    const int64_t whole = channels >= kLanes ? count / kQuad * kQuad : 0;
    for (int64_t first = 0; first < whole; first += kQuad) {
      write_quads(packed + first * kWordBytes, channel_bytes, first);
    }
    for (int64_t first = whole; first < count; first += kQuad) {
      const auto bytes = static_cast<size_t>(std::min(kQuad, count - first) * kWordBytes);
      uint8_t padded[kLanes * kQuadBytes];
      write_quads(padded, kQuadBytes, first);
      for (int64_t channel = 0; channel < std::min(channels, kLanes); ++channel) {
        std::memcpy(packed + channel * channel_bytes + first * kWordBytes, padded + channel * kQuadBytes, bytes);
      }
    }
  }

  /// The same word everywhere.
  void fill(uint32_t word) { std::fill_n(words[0], kMostWords * kMostWidth * kLanes, word); }

 private:
  static constexpr int64_t kWordBytes = sizeof(uint32_t);
  static constexpr int64_t kQuadBytes = kQuad * kWordBytes;
  static_assert(kMostWords % kQuad == 0);

  HWY_INLINE void read_quads(const uint8_t* HWY_RESTRICT packed, int64_t channel_bytes, int64_t first) {
    const Word32Tag d32;
    Word32Vector v[kQuad];
    for (int64_t i = 0; i < kQuad; ++i) {
      v[i] = load_quads(d32, packed + i * channel_bytes, channel_bytes);
    }
    transpose_quads(v);
    for (int64_t i = 0; i < kQuad; ++i) {
      hn::Store(v[i], d32, words[first + i]);
    }
  }
  HWY_INLINE void write_quads(uint8_t* HWY_RESTRICT packed, int64_t channel_bytes, int64_t first) const {
    const Word32Tag d32;
    Word32Vector v[kQuad];
    for (int64_t i = 0; i < kQuad; ++i) {
      v[i] = hn::Load(d32, words[first + i]);
    }
    transpose_quads(v);
    for (int64_t i = 0; i < kQuad; ++i) {
      store_quads(d32, v[i], packed + i * channel_bytes, channel_bytes);
    }
  }
};

/// Which bits of a lane are a code, at kNoiseBits, and its noise. In memory, whence vectors of one number are loaded at
/// no cost; the compiler would move constants through a register for every row.
class CodeConstants {
 public:
  explicit CodeConstants(int bits) : code_(highest_code(bits) << kNoiseBits) {}
  HWY_INLINE Word32Vector code_bits() const { return hn::Set(Word32Tag(), code_); }
  HWY_INLINE Word32Vector noise_bits() const { return hn::Set(Word32Tag(), noise_); }

 private:
  uint32_t code_;
  uint32_t noise_ = kNoises - 1;
};

/// Adds the code of row kRow, which is at kNoiseBits of lanes that have other bits too, to words that begin as zeros.
template <int kBits, int kRow>
HWY_INLINE void put_code(Word32Vector noisy, Word32Vector code_bits, Word32Vector (&words)[kBits]) {
  constexpr int kWord = kRow * kBits / 32;
  constexpr int kPlace = kRow * kBits % 32;
  const auto code = hn::And(noisy, code_bits);
  words[kWord] = hn::Or(words[kWord], shift_up<kPlace - kNoiseBits>(code));
  if constexpr (kPlace + kBits > 32) {
    words[kWord + 1] = hn::Or(words[kWord + 1], hn::ShiftRight<kNoiseBits + 32 - kPlace>(code));
  }
}

/// The code of row kRow at kNoiseBits of lanes of which nothing else is set.
template <int kBits, int kRow>
HWY_INLINE Word32Vector get_code(const Word32Vector (&words)[kBits], Word32Vector code_bits) {
  constexpr int kWord = kRow * kBits / 32;
  constexpr int kPlace = kRow * kBits % 32;
  auto code = shift_up<kNoiseBits - kPlace>(words[kWord]);
  if constexpr (kPlace + kBits > 32) {
    code = hn::Or(code, hn::ShiftLeft<kNoiseBits + 32 - kPlace>(words[kWord + 1]));
  }
  return hn::And(code, code_bits);
}

/// The bits of a word's rows, each in a number, in memory as `CodeConstants`.
class RowBits {
 public:
  RowBits() {
    for (int row = 0; row < kWordRows; ++row) {
      bits_[row] = 1u << row;
    }
  }
  HWY_INLINE Word32Vector of_row(int row) const { return hn::Set(Word32Tag(), bits_[row]); }

 private:
  uint32_t bits_[kWordRows];
};

/// The bits of word `word` of a stream of `width` bits a row that rows [0, rows) have.
HWY_INLINE uint32_t bits_of_rows(int64_t rows, int width, int word) {
  const int64_t bits = std::clamp<int64_t>(rows * width - word * 32, 0, 32);
  return static_cast<uint32_t>((uint64_t{1} << bits) - 1);
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
