#pragma once

#include "actnn/core/activation.h"
#include "src/cuda/vector.cuh"

/// \file
/// GELU, its approximation by tanh, and SiLU, with their derivatives.

namespace actnn::cuda {

inline constexpr float kSqrtHalf = 0.70710678118654752440F;
inline constexpr float kTwoOverSqrtPi = 1.12837916709551257390F;

/// x P(X < x) of a normal X, and the derivative. The exponential of the density also makes the probability: Abramowitz
/// and Stegun, Handbook of Mathematical Functions (1964), 7.1.26, off by at most 1.5e-7.
__device__ inline ActivatedNumber gelu(float x) {
  const float exponential = __expf(-0.5F * x * x);
  constexpr float kFarthest = 64.0F;  // from where on all is 0 or 1
  const float t = reciprocal(__fmaf_rn(0.3275911F * kSqrtHalf, at_most(fabsf(x), kFarthest), 1.0F));
  float p = 1.061405429F;
  p = __fmaf_rn(p, t, -1.453152027F);
  p = __fmaf_rn(p, t, 1.421413741F);
  p = __fmaf_rn(p, t, -0.284496736F);
  p = __fmaf_rn(p, t, 0.254829592F);
  const float beyond = 0.5F * p * t * exponential;  // P(X > |x|)
  const float share = x < 0.0F ? beyond : 1.0F - beyond;
  const float density = 0.5F * kSqrtHalf * kTwoOverSqrtPi * exponential;
  return {x * share, __fmaf_rn(x, density, share)};
}

/// x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), and the derivative.
__device__ inline ActivatedNumber gelu_tanh(float x) {
  constexpr float kLinear = 2.0F * kSqrtHalf * kTwoOverSqrtPi;
  constexpr float kCubic = 0.044715F * kLinear;
  constexpr float kFarthest = SigmoidCoefficients::kFarthest;
  const float square = x * x;
  const float twice = x * __fmaf_rn(kCubic, square, kLinear);
  const float share = sigmoid(at_most(twice < -kFarthest ? -kFarthest : twice, kFarthest));
  const float slope = __fmaf_rn(3.0F * kCubic, square, kLinear);
  return {x * share, share * __fmaf_rn(x * (1.0F - share), slope, 1.0F)};
}

template <ActivationKind kKind>
__device__ ActivatedNumber activate(float x) {
  if constexpr (kKind == ActivationKind::kGELU) {
    return gelu(x);
  } else if constexpr (kKind == ActivationKind::kGELUTanh) {
    return gelu_tanh(x);
  } else {
    static_assert(kKind == ActivationKind::kSiLU);
    return actnn::activate<ActivationFunction::kSiLU>(x);
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
