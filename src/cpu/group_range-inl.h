// The range of a group of elements in storage order. Included once per instruction set, as vector-inl.h.
#if defined(ACTNN_CPU_GROUP_RANGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_GROUP_RANGE_INL_H_
#undef ACTNN_CPU_GROUP_RANGE_INL_H_
#else
#define ACTNN_CPU_GROUP_RANGE_INL_H_
#endif

#include <algorithm>

#include "actnn/core/rounding.h"
#include "src/cpu/vector-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// Elements [0, count) of a group, of which whole blocks are read in place and the rest from a copy that is padded to a
/// block with the group's first element (which changes neither minimum nor maximum).
template <class Element>
struct PaddedTail {
  HWY_ALIGN Element elements[kBlock];

  void fill(const Element* tail, int64_t count, Element padding) {
    std::copy_n(tail, count, elements);
    std::fill(elements + count, elements + kBlock, padding);
  }
};

template <class Element>
HWY_INLINE void extend_range(const Element* block, hn::Vec<FloatTag>& low0, hn::Vec<FloatTag>& low1,
                             hn::Vec<FloatTag>& high0, hn::Vec<FloatTag>& high1, hn::Vec<FloatTag>& zero0,
                             hn::Vec<FloatTag>& zero1) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  const auto zero = hn::Zero(FloatTag());
  for (int64_t i = 0; i < kBlock; i += 2 * lanes) {
    const auto a = load_floats(block + i);
    const auto b = load_floats(block + i + lanes);
    low0 = hn::Min(low0, a);
    low1 = hn::Min(low1, b);
    high0 = hn::Max(high0, a);
    high1 = hn::Max(high1, b);
    // Stays 0 while all elements are finite; infinity and NaN make it NaN for good.
    zero0 = hn::MulAdd(a, zero, zero0);
    zero1 = hn::MulAdd(b, zero, zero1);
  }
}

/// The smallest of the lanes of v, each a pair of numbers, number by number.
template <class Tag>
HWY_INLINE hn::Vec<Tag> smallest_pair(Tag d, hn::Vec<Tag> v) {
  if constexpr (hn::MaxLanes(d) > 4) {
    const hn::Half<Tag> half;
    return hn::ZeroExtendVector(d, smallest_pair(half, hn::Min(hn::LowerHalf(half, v), hn::UpperHalf(half, v))));
  } else {
    return hn::Min(v, hn::Shuffle1032(v));
  }
}

/// From the smallest and largest elements of each lane, and a 0 or NaN. One reduction gives both ends: the largest is
/// minus the smallest of the negatives.
HWY_INLINE GroupRange range_of_lanes(hn::Vec<FloatTag> low, hn::Vec<FloatTag> high, hn::Vec<FloatTag> zero) {
  const FloatTag df;
  const auto minus_high = hn::Neg(high);
  const auto pairs = hn::Min(hn::InterleaveLower(df, low, minus_high), hn::InterleaveUpper(df, low, minus_high));
  const auto pair = smallest_pair(df, pairs);
  return {hn::GetLane(pair), -hn::GetLane(hn::Shuffle2301(pair)), hn::AllFalse(df, hn::IsNaN(zero))};
}

/// That of `count` > 0 elements. If some are not finite, `all_finite` is false and the ends mean nothing.
template <class Element>
HWY_INLINE GroupRange range_of(const Element* elements, int64_t count) {
  const FloatTag df;
  auto low0 = hn::Set(df, to_float(elements[0]));
  auto low1 = low0;
  auto high0 = low0;
  auto high1 = low0;
  auto zero0 = hn::Zero(df);
  auto zero1 = zero0;
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    extend_range(elements + i, low0, low1, high0, high1, zero0, zero1);
  }
  if (i < count) {
    PaddedTail<Element> tail;
    tail.fill(elements + i, count - i, elements[0]);
    extend_range(tail.elements, low0, low1, high0, high1, zero0, zero1);
  }
  return range_of_lanes(hn::Min(low0, low1), hn::Max(high0, high1), hn::Add(zero0, zero1));
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
