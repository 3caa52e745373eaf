#pragma once

#include "actnn/core/activation.h"
#include "src/cuda/vector.cuh"

/// \file
/// GELU, its approximation by tanh, and SiLU, with their derivatives.

namespace actnn::cuda {

inline constexpr float kSqrtHalf = 0.70710678118654752440F;
inline constexpr float kTwoOverSqrtPi = 1.12837916709551257390F;
inline constexpr float kLog2E = 1.44269504088896340736F;

/// 1 / x and 2^x of the hardware, off by one or two units of the last place; what is no normal number is 0.
__device__ inline float quick_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float quick_power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 1 / (1 + exp(-x)).
__device__ inline float sigmoid_of(float x) { return quick_reciprocal(1.0F + quick_power_of_2(-kLog2E * x)); }

/// x P(X < x) of a normal X, and the derivative. The exponential of the density also makes the probability: Abramowitz
/// and Stegun, Handbook of Mathematical Functions (1964), 7.1.26, off by at most 1.5e-7.
__device__ inline ActivatedNumber gelu(float x) {
  const float exponential = quick_power_of_2(-0.5F * kLog2E * x * x);
  const float t = quick_reciprocal(__fmaf_rn(0.3275911F * kSqrtHalf, fabsf(x), 1.0F));
  float p = 0.5F * 1.061405429F;
  p = __fmaf_rn(p, t, 0.5F * -1.453152027F);
  p = __fmaf_rn(p, t, 0.5F * 1.421413741F);
  p = __fmaf_rn(p, t, 0.5F * -0.284496736F);
  p = __fmaf_rn(p, t, 0.5F * 0.254829592F);
  const float beyond = p * t * exponential;  // P(X > |x|)
  const float share = x < 0.0F ? beyond : 1.0F - beyond;
  constexpr float kDensity = 0.5F * kSqrtHalf * kTwoOverSqrtPi;
  return {x * share, __fmaf_rn(x, kDensity * exponential, share)};
}

/// x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), and the derivative.
__device__ inline ActivatedNumber gelu_tanh(float x) {
  constexpr float kLinear = 2.0F * kSqrtHalf * kTwoOverSqrtPi;
  constexpr float kCubic = 0.044715F * kLinear;
  const float square = x * x;
  const float share = sigmoid_of(x * __fmaf_rn(kCubic, square, kLinear));
  const float slope = __fmaf_rn(3.0F * kCubic, square, kLinear);
  return {x * share, __fmaf_rn(share * (1.0F - share) * x, slope, share)};
}

/// x sigmoid(x), and the derivative.
__device__ inline ActivatedNumber silu(float x) {
  const float share = sigmoid_of(x);
  return {x * share, __fmaf_rn(share * (1.0F - share), x, share)};
}

template <ActivationKind kKind>
__device__ ActivatedNumber activate(float x) {
  if constexpr (kKind == ActivationKind::kGELU) {
    return gelu(x);
  } else if constexpr (kKind == ActivationKind::kGELUTanh) {
    return gelu_tanh(x);
  } else {
    static_assert(kKind == ActivationKind::kSiLU);
    return silu(x);
  }
}

__device__ inline ActivatedNumber activate(ActivationKind kind, float x) {
  switch (kind) {
    case ActivationKind::kGELU:
      return activate<ActivationKind::kGELU>(x);
    case ActivationKind::kGELUTanh:
      return activate<ActivationKind::kGELUTanh>(x);
    default:
      return activate<ActivationKind::kSiLU>(x);
  }
}

/// Calls `body.operator()<kKind>()`.
template <class Body>
void with_smooth_activation(ActivationKind kind, Body&& body) {
  switch (kind) {
    case ActivationKind::kGELU:
      return body.template operator()<ActivationKind::kGELU>();
    case ActivationKind::kGELUTanh:
      return body.template operator()<ActivationKind::kGELUTanh>();
    default:
      return body.template operator()<ActivationKind::kSiLU>();
  }
}

}  // namespace actnn::cuda
