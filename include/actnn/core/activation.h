#pragma once

#include <cmath>
#include <cstdint>

#include "actnn/core/host_device.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The activations that can be fused into a normalization's pass. Every operation is one IEEE operation in single
/// precision, and multiply-adds are fused only where they are written so: every processor gives the same results.

namespace actnn {

/// An activation with everything that is part of its name; a leaky ReLU also has a slope.
enum class ActivationKind : int8_t {
  kReLU,
  kReLU6,
  kLeakyReLU,
  kSiLU,
  kHardswish,
  kGELU,
  kGELUTanh,  ///< GELU, approximated by tanh
  kSigmoid,
  kTanh
};

enum class ActivationFunction : uint8_t { kIdentity, kLeakyReLU, kReLU6, kSiLU, kHardswish };

/// An activation in the pass of a normalization.
struct FusedActivation {
  ActivationFunction function = ActivationFunction::kIdentity;
  float slope = 0.0F;  ///< of a leaky ReLU below 0; that of a ReLU is 0
};

/// Whether the activation is linear on each side of 0 (ReLU6: and up to 6), with a bend there.
ACTNN_HOST_DEVICE constexpr bool has_kink(ActivationFunction function) {
  return function == ActivationFunction::kLeakyReLU || function == ActivationFunction::kReLU6;
}

/// Whether backward computes the derivative from a copy.
ACTNN_HOST_DEVICE constexpr bool is_smooth(ActivationFunction function) {
  return function == ActivationFunction::kSiLU || function == ActivationFunction::kHardswish;
}

/// Of a copy that backward computes a smooth activation and its derivative from: with fewer a bias shows
/// (docs/accuracy.md).
inline constexpr int64_t kSmoothBits = 5;
constexpr int64_t smooth_copy_bits(int64_t bits) { return bits < kSmoothBits ? kSmoothBits : bits; }

/// Bits per element that backward needs exactly: the side of 0; ReLU6 and hardswish, whose derivatives jump at two
/// places, also whether the element is between them.
ACTNN_HOST_DEVICE constexpr int mask_count(ActivationFunction function) {
  return function == ActivationFunction::kReLU6 || function == ActivationFunction::kHardswish ? 2
         : function == ActivationFunction::kLeakyReLU                                         ? 1
                                                                                              : 0;
}

/// Both must hold of an element between the jumps of ReLU6 (0 and 6) or hardswish (-3 and 3).
struct Jumps {
  float above;
  float below;

  ACTNN_HOST_DEVICE constexpr bool are_around(float z) const { return z > above && z < below; }
};
ACTNN_HOST_DEVICE constexpr Jumps jumps_of(ActivationFunction function) {
  return function == ActivationFunction::kReLU6 ? Jumps{0.0F, 6.0F} : Jumps{-3.0F, 3.0F};
}

/// a b + c, rounded once.
ACTNN_HOST_DEVICE inline float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

/// The smaller (larger) of a number and a constant, which takes the place of a NaN too.
ACTNN_HOST_DEVICE inline float at_most(float x, float highest) {
#if defined(__CUDA_ARCH__)
  return fminf(x, highest);
#else
  return x < highest ? x : highest;
#endif
}
ACTNN_HOST_DEVICE inline float at_least(float x, float lowest) {
#if defined(__CUDA_ARCH__)
  return fmaxf(x, lowest);
#else
  return x > lowest ? x : lowest;
#endif
}

/// 1 / x, x in [1, 2^125], rounded to nearest.
ACTNN_HOST_DEVICE inline float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  // Division, without its handling of other operands.
  float guess;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(guess) : "f"(x));
  return __fmaf_rn(guess, __fmaf_rn(-x, guess, 1.0F), guess);
#else
  return 1.0F / x;
#endif
}

/// Coefficients of 1 / (1 + exp(-z)).
struct SigmoidCoefficients {
  static constexpr float kFarthest = 80.0F;         ///< replaces a z beyond it, and NaN
  static constexpr float kShift = 0x1.8p23F;        ///< adding it rounds to an integer, in the low bits
  static constexpr float kLog2E = 1.44269502F;      ///< of exp(x) = 2^n exp(x - n log(2)), n = round(x log2(e))
  static constexpr float kLog2High = 0.693359375F;  ///< log(2) in two parts
  static constexpr float kLog2Low = -2.12194440e-4F;
  /// exp(r) = 1 + r + r^2 (((((k0 r + k1) r + k2) r + k3) r + k4) r + k5), |r| <= log(2) / 2; of Cephes' expf.
  static constexpr float k0 = 1.9875691500e-4F;
  static constexpr float k1 = 1.3981999507e-3F;
  static constexpr float k2 = 8.3334519073e-3F;
  static constexpr float k3 = 4.1665795894e-2F;
  static constexpr float k4 = 1.6666665459e-1F;
  static constexpr float k5 = 5.0000001201e-1F;
};

/// 1 / (1 + exp(-z)), |z| <= kFarthest.
ACTNN_HOST_DEVICE inline float sigmoid(float z) {
  using Coefficients = SigmoidCoefficients;
  const float shifted = fused(z, -Coefficients::kLog2E, Coefficients::kShift);
  const float n = shifted - Coefficients::kShift;
  const float r = fused(n, -Coefficients::kLog2Low, fused(n, -Coefficients::kLog2High, -z));
  float p = Coefficients::k0;
  p = fused(p, r, Coefficients::k1);
  p = fused(p, r, Coefficients::k2);
  p = fused(p, r, Coefficients::k3);
  p = fused(p, r, Coefficients::k4);
  p = fused(p, r, Coefficients::k5);
  p = fused(p, r, 1.0F);
  p = fused(p, r, 1.0F);
  const float power = float_of((bits_of(shifted) << 23) + bits_of(1.0F));
  return reciprocal(fused(p, power, 1.0F));
}

/// An activation and its derivative at one point.
struct ActivatedNumber {
  float y;
  float derivative;
};

/// The activation at z on the side of 0 that `side` names (true: z > 0), linear below it. A slope of 0 makes infinities
/// 0, as ReLU does; NaN stays.
ACTNN_HOST_DEVICE constexpr float leaky_relu(float z, bool side, float slope) {
  return side || is_nan(z) ? z : slope == 0.0F ? 0.0F : slope * z;
}
/// Its derivative times `gradient`.
ACTNN_HOST_DEVICE constexpr float leaky_relu_gradient(float gradient, bool side, float slope) {
  return side ? gradient : slope == 0.0F ? 0.0F : slope * gradient;
}

ACTNN_HOST_DEVICE inline float relu6(float z) { return is_nan(z) ? z : at_most(at_least(z, 0.0F), 6.0F); }

/// Of a smooth activation, at z; y is a NaN, of any bits, for a NaN.
template <ActivationFunction function>
ACTNN_HOST_DEVICE inline ActivatedNumber activate(float z) {
  static_assert(is_smooth(function));
  if constexpr (function == ActivationFunction::kSiLU) {
    const float above = z < -SigmoidCoefficients::kFarthest ? -SigmoidCoefficients::kFarthest : z;
    const float near = at_most(above, SigmoidCoefficients::kFarthest);
    const float share = sigmoid(near);
    return {above * share, share * fused(near, 1.0F - share, 1.0F)};
  } else {
    const float share = at_most(at_least(fused(z, 1.0F / 6.0F, 0.5F), 0.0F), 1.0F);
    const float slope = fused(z, 1.0F / 3.0F, 0.5F);
    return {z * share, z > -3.0F ? (z < 3.0F ? slope : 1.0F) : 0.0F};
  }
}

/// ... at a copy of z, from its exact masks: `side` of 0, `between` the jumps. Between them hardswish is not clamped
/// and its derivative is linear in the copy, so that this is unbiased.
template <ActivationFunction function>
ACTNN_HOST_DEVICE inline ActivatedNumber activate_copy(float z, bool side, bool between) {
  if constexpr (function == ActivationFunction::kHardswish) {
    if (between) {
      return {z * fused(z, 1.0F / 6.0F, 0.5F), fused(z, 1.0F / 3.0F, 0.5F)};
    }
    return {side || is_nan(z) ? z : 0.0F, side ? 1.0F : 0.0F};
  } else {
    return activate<function>(z);
  }
}

/// The gradient times a derivative. A derivative of 0 makes infinities 0.
ACTNN_HOST_DEVICE constexpr float smooth_gradient(float gradient, float derivative) {
  return derivative == 0.0F ? 0.0F : derivative * gradient;
}

/// ReLU6 of a copy of z, from its masks; NaN stays. On the slope the copy is not clamped: it is unbiased.
ACTNN_HOST_DEVICE constexpr float relu6_of_copy(float z, bool side, bool between) {
  return is_nan(z) ? z : !side ? 0.0F : between ? z : 6.0F;
}

}  // namespace actnn
