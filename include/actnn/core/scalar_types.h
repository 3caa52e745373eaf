#pragma once

#include <bit>
#include <cstdint>

#include "actnn/core/host_device.h"

/// \file
/// The element types that are quantized, and exact conversions between them and float, by bit pattern. Rounding
/// directions are explicit because group parameters are rounded outward.

namespace actnn {

enum class ElementType : uint8_t { kFloat32, kFloat16, kBFloat16 };

/// A 16-bit float as its bits; the type says how to read them.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

ACTNN_HOST_DEVICE constexpr int64_t element_size(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

ACTNN_HOST_DEVICE constexpr uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
ACTNN_HOST_DEVICE constexpr float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
ACTNN_HOST_DEVICE constexpr bool is_finite(float x) { return (bits_of(x) & 0x7F800000u) != 0x7F800000u; }
ACTNN_HOST_DEVICE constexpr bool is_nan(float x) { return (bits_of(x) & 0x7FFFFFFFu) > 0x7F800000u; }

inline constexpr uint32_t kNanFloat32 = 0x7FC00000;
inline constexpr uint16_t kNanBFloat16 = 0x7FC0;
inline constexpr uint16_t kNanFloat16 = 0x7E00;

/// `x`, or the canonical NaN: which bits an operation gives a NaN differs between processors.
ACTNN_HOST_DEVICE constexpr float with_canonical_nan(float x) { return is_nan(x) ? float_of(kNanFloat32) : x; }

inline constexpr uint32_t kInfinityFloat32 = 0x7F800000;
inline constexpr uint16_t kInfinityBFloat16 = 0x7F80;
inline constexpr uint16_t kInfinityFloat16 = 0x7C00;

ACTNN_HOST_DEVICE constexpr float to_float(float x) { return x; }
ACTNN_HOST_DEVICE constexpr float to_float(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
ACTNN_HOST_DEVICE constexpr float to_float(Float16 x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) {  // infinity, NaN
    return float_of(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
  }
  if (magnitude >= 0x0400u) {  // normal: move the exponent's bias from 15 to 127
    return float_of(sign | ((magnitude << 13) + (112u << 23)));
  }
  const float value = static_cast<float>(magnitude) * 0x1p-24F;  // subnormal, exact in float
  return float_of(sign | bits_of(value));
#endif
}

/// Round to nearest, ties to even. NaN becomes the canonical NaN.
ACTNN_HOST_DEVICE constexpr BFloat16 round_to_bfloat16(float x) {
  if (is_nan(x)) {
    return {kNanBFloat16};
  }
  const uint32_t bits = bits_of(x);
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

/// Round to nearest, ties to even; magnitudes of 65520 and more become infinity. NaN becomes the canonical NaN.
ACTNN_HOST_DEVICE constexpr Float16 round_to_float16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) {
    return {kNanFloat16};
  }
  if (magnitude >= 0x477FF000u) {
    return {static_cast<uint16_t>(sign | 0x7C00u)};
  }
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 aligns the value so that the float addition itself rounds at bit 2^-24.
    const uint32_t rounded = bits_of(float_of(magnitude) + 0.5F) - bits_of(0.5F);
    return {static_cast<uint16_t>(sign | rounded)};
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23);
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

ACTNN_HOST_DEVICE constexpr void store_rounded(float value, float* out) { *out = value; }
ACTNN_HOST_DEVICE constexpr void store_rounded(float value, BFloat16* out) { *out = round_to_bfloat16(value); }
ACTNN_HOST_DEVICE constexpr void store_rounded(float value, Float16* out) { *out = round_to_float16(value); }

/// The 16-bit type of a group's minimum: float16 for float16 elements, bfloat16 for the others.
ACTNN_HOST_DEVICE constexpr bool has_float16_parameters(ElementType type) { return type == ElementType::kFloat16; }

ACTNN_HOST_DEVICE constexpr float parameter_to_float(uint16_t bits, ElementType type) {
  return has_float16_parameters(type) ? to_float(Float16{bits}) : to_float(BFloat16{bits});
}

ACTNN_HOST_DEVICE constexpr uint16_t round_parameter_to_nearest(float x, ElementType type) {
  return has_float16_parameters(type) ? round_to_float16(x).bits : round_to_bfloat16(x).bits;
}

/// Calls `body` with a value of the C++ type that `type` names: `float`, `Float16` or `BFloat16`.
template <class Body>
constexpr auto with_element_type(ElementType type, Body&& body) {
  switch (type) {
    case ElementType::kFloat16:
      return body(Float16{});
    case ElementType::kBFloat16:
      return body(BFloat16{});
    case ElementType::kFloat32:
      break;
  }
  return body(float{});
}

namespace detail {

/// The neighbour of a finite 16-bit float in the direction of minus (plus) infinity. Both 16-bit types order like
/// sign-magnitude integers.
ACTNN_HOST_DEVICE constexpr uint16_t next_down(uint16_t bits) {
  if ((bits & 0x7FFFu) == 0) {
    return 0x8001u;
  }
  return static_cast<uint16_t>((bits & 0x8000u) != 0 ? bits + 1 : bits - 1);
}
ACTNN_HOST_DEVICE constexpr uint16_t next_up(uint16_t bits) {
  if ((bits & 0x7FFFu) == 0) {
    return 0x0001u;
  }
  return static_cast<uint16_t>((bits & 0x8000u) != 0 ? bits - 1 : bits + 1);
}

}  // namespace detail

/// The parameter value next to `x` in the direction of zero, which is `x` itself if it is one; `x` is finite.
ACTNN_HOST_DEVICE constexpr uint16_t truncate_to_parameter(float x, ElementType type) {
  if (!has_float16_parameters(type)) {
    return static_cast<uint16_t>(bits_of(x) >> 16);
  }
#if defined(__CUDA_ARCH__)
  uint16_t truncated;
  asm("cvt.rz.f16.f32 %0, %1;" : "=h"(truncated) : "f"(x));
  return truncated;
#else
  const uint16_t nearest = round_to_float16(x).bits;
  const bool farther = (bits_of(to_float(Float16{nearest})) & 0x7FFFFFFFu) > (bits_of(x) & 0x7FFFFFFFu);
  return static_cast<uint16_t>(nearest - (farther ? 1 : 0));  // both signs order by magnitude
#endif
}

/// The largest parameter value not above `x` (minus infinity where there is none). `x` is not NaN.
///
/// A bfloat16 is the upper half of a float, so that cutting off the lower half rounds towards zero; written without a
/// branch, because whether anything was cut off cannot be predicted.
ACTNN_HOST_DEVICE constexpr uint16_t round_parameter_down(float x, ElementType type) {
  if (has_float16_parameters(type)) {
#if defined(__CUDA_ARCH__)
    uint16_t rounded;
    asm("cvt.rm.f16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return rounded;
#else
    const uint16_t nearest = round_to_float16(x).bits;
    return to_float(Float16{nearest}) > x ? detail::next_down(nearest) : nearest;
#endif
  }
  const uint32_t bits = bits_of(x);
  const uint32_t inexact = (bits & 0xFFFFu) != 0 ? 1u : 0u;
  return static_cast<uint16_t>((bits >> 16) + (inexact & (bits >> 31)));
}

/// The smallest parameter value not below `x` (infinity where there is none). `x` is not NaN.
ACTNN_HOST_DEVICE constexpr uint16_t round_parameter_up(float x, ElementType type) {
  if (has_float16_parameters(type)) {
#if defined(__CUDA_ARCH__)
    uint16_t rounded;
    asm("cvt.rp.f16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return rounded;
#else
    const uint16_t nearest = round_to_float16(x).bits;
    return to_float(Float16{nearest}) < x ? detail::next_up(nearest) : nearest;
#endif
  }
  const uint32_t bits = bits_of(x);
  const uint32_t inexact = (bits & 0xFFFFu) != 0 ? 1u : 0u;
  return static_cast<uint16_t>((bits >> 16) + (inexact & ~(bits >> 31)));
}

}  // namespace actnn
