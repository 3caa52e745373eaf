// The activations of core/activation.h in vectors. Included once per instruction set (Highway's foreach_target), hence
// the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_ACTIVATION_INL_H_
#undef ACTNN_CPU_ACTIVATION_INL_H_
#else
#define ACTNN_CPU_ACTIVATION_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "actnn/core/activation.h"
#include "src/cpu/vector-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// Where multiply-adds are not rounded once, the reference does what is smooth.
inline bool needs_reference(ActivationFunction function) { return HWY_NATIVE_FMA == 0 && is_smooth(function); }

template <class Tag>
HWY_INLINE hn::Vec<Tag> at_most(Tag df, hn::Vec<Tag> x, float highest) {
  const auto limit = hn::Set(df, highest);
  return hn::IfThenElse(hn::Lt(x, limit), x, limit);
}
template <class Tag>
HWY_INLINE hn::Vec<Tag> at_least(Tag df, hn::Vec<Tag> x, float lowest) {
  const auto limit = hn::Set(df, lowest);
  return hn::IfThenElse(hn::Gt(x, limit), x, limit);
}

/// By `actnn::sigmoid`.
template <class Tag>
HWY_INLINE hn::Vec<Tag> sigmoid(Tag df, hn::Vec<Tag> z) {
  using Coefficients = SigmoidCoefficients;
  const hn::Rebind<uint32_t, Tag> d32;
  const auto one = hn::Set(df, 1.0F);
  const auto shifted = hn::MulAdd(z, hn::Set(df, -Coefficients::kLog2E), hn::Set(df, Coefficients::kShift));
  const auto n = hn::Sub(shifted, hn::Set(df, Coefficients::kShift));
  const auto high = hn::MulAdd(n, hn::Set(df, -Coefficients::kLog2High), hn::Neg(z));
  const auto r = hn::MulAdd(n, hn::Set(df, -Coefficients::kLog2Low), high);
  auto p = hn::Set(df, Coefficients::k0);
  p = hn::MulAdd(p, r, hn::Set(df, Coefficients::k1));
  p = hn::MulAdd(p, r, hn::Set(df, Coefficients::k2));
  p = hn::MulAdd(p, r, hn::Set(df, Coefficients::k3));
  p = hn::MulAdd(p, r, hn::Set(df, Coefficients::k4));
  p = hn::MulAdd(p, r, hn::Set(df, Coefficients::k5));
  p = hn::MulAdd(p, r, one);
  p = hn::MulAdd(p, r, one);
  const auto power = hn::Add(hn::ShiftLeft<23>(hn::BitCast(d32, shifted)), hn::BitCast(d32, one));
  return hn::Div(one, hn::MulAdd(p, hn::BitCast(df, power), one));
}

template <class Tag>
struct ActivatedVector {
  hn::Vec<Tag> y;
  hn::Vec<Tag> derivative;
};

/// By `actnn::activate`.
template <ActivationFunction function, class Tag>
HWY_INLINE ActivatedVector<Tag> activate(Tag df, hn::Vec<Tag> z) {
  const auto one = hn::Set(df, 1.0F);
  if constexpr (function == ActivationFunction::kSiLU) {
    const auto lowest = hn::Set(df, -SigmoidCoefficients::kFarthest);
    const auto above = hn::IfThenElse(hn::Lt(z, lowest), lowest, z);
    const auto near = at_most(df, above, SigmoidCoefficients::kFarthest);
    const auto share = sigmoid(df, near);
    return {hn::Mul(above, share), hn::Mul(share, hn::MulAdd(near, hn::Sub(one, share), one))};
  } else {
    const auto half = hn::Set(df, 0.5F);
    const auto share = at_most(df, at_least(df, hn::MulAdd(z, hn::Set(df, 1.0F / 6.0F), half), 0.0F), 1.0F);
    const auto slope = hn::MulAdd(z, hn::Set(df, 1.0F / 3.0F), half);
    const auto derivative =
        hn::IfThenElseZero(hn::Gt(z, hn::Set(df, -3.0F)), hn::IfThenElse(hn::Lt(z, hn::Set(df, 3.0F)), slope, one));
    return {hn::Mul(z, share), derivative};
  }
}

/// By `actnn::activate_copy`.
template <ActivationFunction function, class Tag>
HWY_INLINE ActivatedVector<Tag> activate_copy(Tag df, hn::Vec<Tag> z, hn::Mask<Tag> side, hn::Mask<Tag> between) {
  if constexpr (function == ActivationFunction::kHardswish) {
    const auto half = hn::Set(df, 0.5F);
    const auto y = hn::Mul(z, hn::MulAdd(z, hn::Set(df, 1.0F / 6.0F), half));
    const auto derivative = hn::MulAdd(z, hn::Set(df, 1.0F / 3.0F), half);
    const auto stays = hn::Or(side, hn::IsNaN(z));
    return {hn::IfThenElse(between, y, hn::IfThenElseZero(stays, z)),
            hn::IfThenElse(between, derivative, hn::IfThenElseZero(side, hn::Set(df, 1.0F)))};
  } else {
    return activate<function>(df, z);
  }
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
