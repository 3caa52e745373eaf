// The grids of several groups at once, a group a lane: core/rounding.h and core/sides.h in vectors. Included once per
// instruction set (Highway's foreach_target), hence the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_GRIDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_GRIDS_INL_H_
#undef ACTNN_CPU_GRIDS_INL_H_
#else
#define ACTNN_CPU_GRIDS_INL_H_
#endif

#include <cstdint>

#include "actnn/core/rounding.h"
#include "actnn/core/sides.h"
#include "src/cpu/vector-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// What is stored of groups of finite elements, and what these are encoded with. Of groups that are not representable
/// the rest means nothing.
template <class Tag>
struct Grids {
  hn::Vec<hn::Rebind<uint32_t, Tag>> parameters;
  hn::Vec<Tag> minimum;
  hn::Vec<Tag> above;  ///< 2^8 / step
  hn::Vec<Tag> below;  ///< that of the grid below 0, negative; 0 where there is none
  hn::Mask<Tag> representable;
};

/// bfloat16 parameters are the upper halves of floats.
inline constexpr uint32_t kParameterHalf = 0xFFFF0000;
inline constexpr uint32_t kNextParameter = 0x10000;

/// All ones where x has its sign set.
template <class Tag>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, Tag>> spread_signs(Tag /*df*/, hn::Vec<Tag> x) {
  const hn::Rebind<int32_t, Tag> di32;
  return hn::BitCast(hn::Rebind<uint32_t, Tag>(), hn::BroadcastSignBit(hn::BitCast(di32, x)));
}

/// `round_parameter_down` to bfloat16, and `round_parameter_up`, as floats.
template <class Tag>
HWY_INLINE hn::Vec<Tag> rounded_down(Tag df, hn::Vec<Tag> x) {
  const hn::Rebind<uint32_t, Tag> d32;
  const auto inexact = hn::Add(hn::BitCast(d32, x), hn::AndNot(hn::Set(d32, kParameterHalf), spread_signs(df, x)));
  return hn::BitCast(df, hn::And(inexact, hn::Set(d32, kParameterHalf)));
}
template <class Tag>
HWY_INLINE hn::Vec<Tag> rounded_up(Tag df, hn::Vec<Tag> x) {
  const hn::Rebind<uint32_t, Tag> d32;
  const auto inexact = hn::Add(hn::BitCast(d32, x), hn::AndNot(spread_signs(df, x), hn::Set(d32, ~kParameterHalf)));
  return hn::BitCast(df, hn::And(inexact, hn::Set(d32, kParameterHalf)));
}

/// `smallest_step`, as floats; 0 where the range is 0.
template <class Tag>
HWY_INLINE hn::Vec<Tag> smallest_steps(Tag df, hn::Vec<Tag> range, float levels) {
  const hn::Rebind<uint32_t, Tag> d32;
  const auto quotient = hn::Mul(range, hn::Set(df, 1.0F / levels));
  auto step = hn::And(hn::BitCast(d32, quotient), hn::Set(d32, kParameterHalf));
  for (int i = 0; i < 2; ++i) {
    const auto reach = hn::Mul(hn::BitCast(df, step), hn::Set(df, levels));
    const auto next = hn::IfThenElseZero(hn::RebindMask(d32, hn::Lt(reach, range)), hn::Set(d32, kNextParameter));
    step = hn::Add(step, next);
  }
  step = hn::Max(step, hn::Set(d32, uint32_t{kSmallestStep} << 16));
  return hn::IfThenZeroElse(hn::Eq(range, hn::Zero(df)), hn::BitCast(df, step));
}

template <class Tag>
HWY_INLINE hn::Vec<Tag> noises_per_unit(Tag df, hn::Vec<Tag> step) {
  const auto quotient = hn::Div(hn::Set(df, static_cast<float>(kNoises)), step);
  return hn::IfThenZeroElse(hn::Eq(step, hn::Zero(df)), quotient);
}

/// The first parameter in the lower half, and the second in the upper.
template <class Tag>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, Tag>> both_parameters(Tag /*df*/, hn::Vec<Tag> first, hn::Vec<Tag> second) {
  const hn::Rebind<uint32_t, Tag> d32;
  return hn::Or(hn::ShiftRight<16>(hn::BitCast(d32, first)), hn::BitCast(d32, second));
}

/// `is_finite_as`.
template <class Tag>
HWY_INLINE hn::Mask<Tag> are_finite_as(Tag df, hn::Vec<Tag> x, ElementType type) {
  return hn::Lt(hn::Abs(x), hn::Set(df, float_of(type == ElementType::kBFloat16 ? 0x7F7F8000U : kInfinityFloat32)));
}

/// `choose_grid` and `encoding_grid` of elements from `smallest` to `largest`; the canonical NaN as `smallest` makes a
/// group unrepresentable. Of float16 none is representable: their parameters are of another type.
template <class Tag>
HWY_INLINE Grids<Tag> choose_grids(Tag df, hn::Vec<Tag> smallest, hn::Vec<Tag> largest, int bits, ElementType type) {
  const auto levels = static_cast<float>(highest_code(bits));
  const auto minimum = hn::IfThenZeroElse(hn::Eq(smallest, hn::Zero(df)), rounded_down(df, smallest));
  const auto step = smallest_steps(df, hn::Sub(rounded_up(df, largest), minimum), levels);
  const auto half = hn::Mul(hn::Set(df, 0.5F), step);
  const auto end = hn::Add(minimum, hn::Mul(step, hn::Set(df, levels)));
  const auto reach = hn::Mul(step, hn::Set(df, levels + 1.0F));
  const auto ends_are_finite =
      hn::And(are_finite_as(df, hn::Add(end, half), type), are_finite_as(df, hn::Sub(minimum, half), type));
  const auto are_of_type = hn::FirstN(df, has_float16_parameters(type) ? 0 : hn::Lanes(df));
  return {both_parameters(df, minimum, step), minimum, noises_per_unit(df, step), hn::Zero(df),
          hn::And(are_of_type, hn::And(ends_are_finite, are_finite_as(df, reach, ElementType::kFloat32)))};
}

/// `choose_sides` and `SideEncoder` of elements that reach so far from 0.
template <class Tag>
HWY_INLINE Grids<Tag> choose_side_grids(Tag df, hn::Vec<Tag> above, hn::Vec<Tag> below, int bits) {
  const auto levels = static_cast<float>(highest_code(bits));
  const auto step_above = smallest_steps(df, rounded_up(df, above), levels);
  const auto step_below = smallest_steps(df, rounded_up(df, below), levels);
  const auto farther = hn::Mul(hn::Max(step_above, step_below), hn::Set(df, levels + 1.0F));
  return {both_parameters(df, step_above, step_below), hn::Zero(df), noises_per_unit(df, step_above),
          hn::Neg(noises_per_unit(df, step_below)), are_finite_as(df, farther, ElementType::kFloat32)};
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
