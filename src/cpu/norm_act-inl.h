// What both directions of a normalization with activation share, in vectors whose lanes are channels. Included once per
// instruction set (Highway's foreach_target), hence the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_NORM_ACT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_NORM_ACT_INL_H_
#undef ACTNN_CPU_NORM_ACT_INL_H_
#else
#define ACTNN_CPU_NORM_ACT_INL_H_
#endif

#include <cstdint>

#include "actnn/cpu/norm_act.h"
#include "src/cpu/activation-inl.h"
#include "src/cpu/pieces-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

using FloatMask = hn::Mask<FloatTag>;

inline constexpr int kMostMasks = 2;

/// Calls `body` with the activation as a template argument.
template <class Body>
HWY_INLINE void with_function(ActivationFunction function, Body&& body) {
  using enum ActivationFunction;
  switch (function) {
    case kIdentity:
      return body.template operator()<kIdentity>();
    case kLeakyReLU:
      return body.template operator()<kLeakyReLU>();
    case kReLU6:
      return body.template operator()<kReLU6>();
    case kSiLU:
      return body.template operator()<kSiLU>();
    case kHardswish:
      return body.template operator()<kHardswish>();
  }
}

/// A leaky ReLU below its kink; 0 if the slope is 0, also of infinities. Each loop wants one of its own: the compiler
/// must think that every store changes a slope that is in memory.
class BelowKink {
 public:
  HWY_INLINE explicit BelowKink(float slope)
      : slope_(hn::Set(FloatTag(), slope)), has_slope_(hn::Ne(slope_, hn::Zero(FloatTag()))) {}

  HWY_INLINE FloatVector operator()(FloatVector x) const { return hn::IfThenElseZero(has_slope_, hn::Mul(slope_, x)); }

 private:
  FloatVector slope_;
  FloatMask has_slope_;
};

/// y at z on the side of 0 that `side` names, with the canonical NaN for any.
template <ActivationFunction kFunction>
HWY_INLINE FloatVector activated(const BelowKink& below, FloatVector z, FloatMask side) {
  using enum ActivationFunction;
  const FloatTag df;
  const auto with_nan_of = [&](FloatVector x, FloatVector y) {
    return hn::IfThenElse(hn::IsNaN(x), hn::BitCast(df, hn::Set(Word32Tag(), kNanFloat32)), y);
  };
  if constexpr (kFunction == kIdentity) {
    return with_nan_of(z, z);
  } else if constexpr (kFunction == kLeakyReLU) {
    return with_nan_of(z, hn::IfThenElse(side, z, below(z)));
  } else if constexpr (kFunction == kReLU6) {
    return with_nan_of(z, at_most(df, at_least(df, z, 0.0F), 6.0F));
  } else {
    const auto y = activate<kFunction>(df, z).y;
    return with_nan_of(y, y);  // that of -infinity too, perhaps
  }
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
