#pragma once

#include <cmath>
#include <cstdint>

#include "actnn/core/host_device.h"
#include "actnn/core/rounding.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The activations that can be fused into a normalization's pass, and how derivatives are packed that two slopes do not
/// describe. Every operation is one IEEE operation in single precision, and multiply-adds are fused only where they are
/// written so: every processor gives the same results.

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

enum class ActivationFunction : uint8_t {
  kLeakyReLU,  ///< any slope below 0, so also ReLU and no activation; packs no derivatives
  kReLU6,
  kSiLU,
  kHardswish
};

/// Bit planes of derivatives, beside the planes of copies in a packed tensor (core/sign_split.h).
struct PackedDerivative {
  ActivationFunction function = ActivationFunction::kLeakyReLU;
  int bits = 0;  ///< 1 for ReLU6, whose derivative is 0 or 1; 1..7 for smooth ones; 0: none
};
inline constexpr int kMostDerivativeBits = kMaxBits - 1;

/// Whether a packed copy gives an unbiased result of the activation: where it is piecewise linear, and the pieces are
/// exact.
ACTNN_HOST_DEVICE constexpr bool gives_output(ActivationFunction function) {
  return function == ActivationFunction::kLeakyReLU || function == ActivationFunction::kReLU6;
}

/// The range of derivatives, rounded outward. SiLU's are between -0.0998394 and 1.0998394.
struct DerivativeRange {
  float lowest;
  float highest;
};
ACTNN_HOST_DEVICE constexpr DerivativeRange derivative_range(ActivationFunction function) {
  switch (function) {
    case ActivationFunction::kSiLU:
      return {-0.09984F, 1.09984F};
    case ActivationFunction::kHardswish:
      return {-0.5F, 1.5F};
    default:
      return {0.0F, 1.0F};
  }
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

/// At z; y is a NaN, of any bits, for a NaN. Not for leaky ReLU, which is in core/norm_act.h.
template <ActivationFunction function>
ACTNN_HOST_DEVICE inline ActivatedNumber activate(float z) {
  static_assert(function != ActivationFunction::kLeakyReLU);
  if constexpr (function == ActivationFunction::kReLU6) {
    return {is_nan(z) ? z : at_most(at_least(z, 0.0F), 6.0F), z > 0.0F && z < 6.0F ? 1.0F : 0.0F};
  } else if constexpr (function == ActivationFunction::kSiLU) {
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

/// Codes of derivatives: 2^bits evenly spaced values from the lowest to the highest of the range. They need no
/// parameters.
struct DerivativeGrid {
  float lowest;
  float step;

  ACTNN_HOST_DEVICE constexpr explicit DerivativeGrid(PackedDerivative packed)
      : lowest(derivative_range(packed.function).lowest),
        step((derivative_range(packed.function).highest - lowest) / static_cast<float>(highest_code(packed.bits))) {}

  ACTNN_HOST_DEVICE float decode(float code) const { return fused(code, step, lowest); }
};

/// The other way: codes, rounded by 16 bits of noise. A derivative in the range is the expectation of its decoded code.
struct DerivativeEncoder {
  float scale = 0;  ///< units of 2^-16 of a step
  float shift = 0;
  float most;

  ACTNN_HOST_DEVICE constexpr explicit DerivativeEncoder(PackedDerivative packed)
      : most(static_cast<float>(highest_code(packed.bits) << 16)) {
    const DerivativeRange range = derivative_range(packed.function);
    scale = most / (range.highest - range.lowest);
    shift = -(range.lowest * scale);
  }

  /// Units above the lowest, as the bits of 2^23 and that many more.
  ACTNN_HOST_DEVICE uint32_t position(float derivative) const {
    return bits_of(at_most(at_least(fused(derivative, scale, shift), 0.0F), most) + kIntegerInMantissa);
  }
  ACTNN_HOST_DEVICE uint32_t encode(float derivative, uint32_t noise) const {
    return (position(derivative) - bits_of(kIntegerInMantissa) + noise) >> 16;
  }
};

/// The counter of the noise of derivatives: another than that of the copies, so that products of both stay unbiased.
ACTNN_HOST_DEVICE constexpr uint64_t derivative_counter(uint64_t counter) { return counter | (uint64_t{1} << 63); }

/// The gradient times a derivative. A derivative of 0 makes infinities 0.
ACTNN_HOST_DEVICE constexpr float derived_gradient(float gradient, float derivative) {
  return derivative == 0.0F ? 0.0F : derivative * gradient;
}

/// ReLU6 of a copy of z, from the exact side and derivative; NaN stays. On the slope the copy is not clamped: it is
/// unbiased.
ACTNN_HOST_DEVICE constexpr float relu6_of_copy(float z, bool side, bool on_slope) {
  return is_nan(z) ? z : !side ? 0.0F : on_slope ? z : 6.0F;
}

}  // namespace actnn
