// Column groups (core/columns.h) in vectors whose lanes are channels. Included once per instruction set (Highway's
// foreach_target), hence the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_COLUMNS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_COLUMNS_INL_H_
#undef ACTNN_CPU_COLUMNS_INL_H_
#else
#define ACTNN_CPU_COLUMNS_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "actnn/core/columns.h"
#include "actnn/core/rounding.h"
#include "src/cpu/vector-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

using FloatVector = hn::Vec<FloatTag>;
using Word32Vector = hn::Vec<Word32Tag>;

/// The noise bytes of an octet of rows for a vector of channels: of row r in byte r % 4 of `of_rows[r / 4]`'s lanes.
struct ColumnNoise {
  Word32Vector of_rows[2];
};

/// The same noise for every element.
HWY_INLINE ColumnNoise constant_noise(uint32_t noise) {
  const auto bytes = hn::Set(Word32Tag(), noise * 0x01010101u);
  return {{bytes, bytes}};
}

/// Draws the noise of two octets of rows: two, because a round of Philox is a chain of dependent instructions. A block
/// has the words of two channels, the even one's first, and the 64-bit lane that computed it is where their two 32-bit
/// lanes are: nothing needs to move across lanes.
class ColumnRandom {
 public:
  ColumnRandom(const RandomState& random, const ColumnLayout<int64_t>& layout)
      : keys_(random.seed), offset_(random.offset), layout_(layout) {}

  /// Of octets `row_octet` and the next, of the vector from `channel`, which is even, on.
  HWY_INLINE void draw_rows(int64_t row_octet, int64_t channel, ColumnNoise& first, ColumnNoise& second) const {
    const Word64Tag d64;
    const auto start2 = hn::Set(d64, offset_);
    const auto start3 = hn::Set(d64, offset_ >> 32);
    const auto counter_a = counters_of(row_octet, channel);
    const auto counter_b = counters_of(row_octet + 1, channel);
    PhiloxState a{counter_a, hn::ShiftRight<32>(counter_a), start2, start3};
    PhiloxState b{counter_b, hn::ShiftRight<32>(counter_b), start2, start3};
    philox_rounds(keys_, a, b);
    first = in_channel_order(a);
    second = in_channel_order(b);
  }

 private:
  HWY_INLINE hn::Vec<Word64Tag> counters_of(int64_t row_octet, int64_t channel) const {
    const Word64Tag d64;
    return hn::Add(hn::Set(d64, layout_.noise_octet(row_octet, channel) / 2), hn::Iota(d64, 0));
  }
  static HWY_INLINE ColumnNoise in_channel_order(const PhiloxState& s) {
    return {{joined(s.x0, s.x2), joined(s.x1, s.x3)}};
  }
  static HWY_INLINE Word32Vector joined(hn::Vec<Word64Tag> even, hn::Vec<Word64Tag> odd) {
    return hn::OddEven(hn::BitCast(Word32Tag(), hn::ShiftLeft<32>(odd)), hn::BitCast(Word32Tag(), even));
  }

  PhiloxKeys keys_;
  uint64_t offset_;
  ColumnLayout<int64_t> layout_;
};

/// Moves bits up (or down, if negative).
template <int kShift>
HWY_INLINE Word32Vector shift_up(Word32Vector x) {
  if constexpr (kShift < 0) {
    return hn::ShiftRight<-kShift>(x);
  } else {
    return hn::ShiftLeft<kShift>(x);
  }
}

/// The noise of row kRow of an octet, in the low byte of lanes of which nothing else is set. `lowest_byte` is
/// kNoises - 1, which the caller loads once: the compiler would do so for every row.
template <int kRow>
HWY_INLINE Word32Vector noise_of_row(const ColumnNoise& noise, Word32Vector lowest_byte) {
  const auto lowest = hn::ShiftRight<kNoiseBits*(kRow % 4)>(noise.of_rows[kRow / 4]);
  return kRow % 4 == 3 ? lowest : hn::And(lowest, lowest_byte);
}

/// Calls `body` with each of 0..7 as a compile-time constant.
template <class Body>
HWY_INLINE void for_rows_of_octet(Body&& body) {
  body(std::integral_constant<int, 0>());
  body(std::integral_constant<int, 1>());
  body(std::integral_constant<int, 2>());
  body(std::integral_constant<int, 3>());
  body(std::integral_constant<int, 4>());
  body(std::integral_constant<int, 5>());
  body(std::integral_constant<int, 6>());
  body(std::integral_constant<int, 7>());
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
