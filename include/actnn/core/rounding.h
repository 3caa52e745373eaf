#pragma once

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/host_device.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The arithmetic of the packed format: a group's grid, one element's code, one code's value. Plain IEEE single
/// precision without contraction, so that every processor gives the same bytes.

namespace actnn {

/// What is stored per group: the grid's first point and the distance of its points, each 16 bits.
/// A constant group has step 0. A group that cannot be represented (see `choose_grid`) has minimum NaN and step 0.
struct alignas(4) GroupParameters {
  uint16_t minimum;
  uint16_t step;
};
static_assert(sizeof(GroupParameters) == 4);

/// The highest code, 2^bits - 1.
ACTNN_HOST_DEVICE constexpr uint32_t highest_code(int bits) { return (1u << bits) - 1u; }

/// Bits of a code's fraction, and so of the noise that decides its rounding. An 8-bit code has 14, because code and
/// fraction together must fit the 23 bits of a float's mantissa.
ACTNN_HOST_DEVICE constexpr int fraction_bits(int bits) { return bits == 8 ? 14 : 16; }

/// The noise of deterministic rounding: half a step.
ACTNN_HOST_DEVICE constexpr uint32_t half_step(int bits) { return 1u << (fraction_bits(bits) - 1); }

/// The smallest step of bfloat16 grids, 2^-110: keeps 2^16 / step finite.
inline constexpr uint16_t kSmallestBFloat16Step = (127 - 110) << 7;

ACTNN_HOST_DEVICE constexpr GroupParameters unrepresentable_group(ElementType type) {
  return {has_float16_parameters(type) ? kNanFloat16 : kNanBFloat16, 0};
}

/// Whether a number is still finite after rounding to `type`.
ACTNN_HOST_DEVICE constexpr bool is_finite_as(float x, ElementType type) {
  // The magnitudes that round to infinity begin halfway between the largest number and the next power of two.
  const uint32_t infinite = type == ElementType::kFloat16    ? 0x477FF000u
                            : type == ElementType::kBFloat16 ? 0x7F7F8000u
                                                             : 0x7F800000u;
  return (bits_of(x) & 0x7FFFFFFFu) < infinite;
}

/// The smallest parameter value of which `levels` reach over `range`: levels * step >= range, which is exact.
///
/// A product instead of the quotient: it is off by less than 2^-22 of itself, and a parameter value has at most 11
/// bits, so that rounding the product down gives the step or one of the two values before it.
ACTNN_HOST_DEVICE constexpr uint16_t smallest_step(float range, float levels, ElementType type) {
  uint16_t step = truncate_to_parameter(range * (1.0F / levels), type);
  step = static_cast<uint16_t>(step + (parameter_to_float(step, type) * levels < range ? 1 : 0));
  step = static_cast<uint16_t>(step + (parameter_to_float(step, type) * levels < range ? 1 : 0));
  return !has_float16_parameters(type) && step < kSmallestBFloat16Step ? kSmallestBFloat16Step : step;
}

/// The grid of a group with the given smallest and largest element: the minimum is rounded down and the step up, so
/// that [minimum, minimum + (2^bits - 1) * step] covers the group and no element is clipped. A constant group keeps its
/// value rounded to nearest. Unrepresentable are groups with an infinite or NaN element (`all_finite` false) and groups
/// whose grid has an end that is not finite in the element type: they decode to NaN.
ACTNN_HOST_DEVICE constexpr GroupParameters choose_grid(float smallest, float largest, bool all_finite, int bits,
                                                        ElementType type) {
  if (!all_finite) {
    return unrepresentable_group(type);
  }
  // -0 becomes +0: which zero is the minimum must not depend on the order of comparison.
  smallest = bits_of(smallest) == 0x80000000u ? 0.0F : smallest;
  if (smallest == largest) {
    const uint16_t value = round_parameter_to_nearest(smallest, type);
    return is_finite(parameter_to_float(value, type)) ? GroupParameters{value, 0} : unrepresentable_group(type);
  }
  // An element of 16 bits is a parameter value already.
  const uint16_t minimum =
      type == ElementType::kFloat32 ? round_parameter_down(smallest, type) : truncate_to_parameter(smallest, type);
  const float minimum_value = parameter_to_float(minimum, type);
  const float range = largest - minimum_value;
  if (!is_finite(range)) {
    return unrepresentable_group(type);
  }
  const auto levels = static_cast<float>(highest_code(bits));
  const uint16_t step = smallest_step(range, levels, type);
  const float end = minimum_value + parameter_to_float(step, type) * levels;
  return is_finite_as(end, type) ? GroupParameters{minimum, step} : unrepresentable_group(type);
}

/// A group's parameters as the encoder uses them.
struct EncodingGrid {
  float minimum;
  float inverse_step;  ///< 2^fraction_bits / step; 0 for a constant group
};

/// 2^fraction_bits / step, rounded to nearest, for the steps that grids have.
ACTNN_HOST_DEVICE constexpr float steps_per_unit(float step, int bits) {
#if defined(__CUDA_ARCH__)
  // One Newton step from the hardware's reciprocal, in a quarter of a division's instructions. It is exact to the last
  // bit for each of the 16-bit steps (a test compares them all); scaling by a power of two keeps every intermediate a
  // normal number.
  const float divisor = step * (bits == 8 ? 0x1p-14F : 0x1p-16F);
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(divisor));
  return __fmaf_rn(reciprocal, __fmaf_rn(-divisor, reciprocal, 1.0F), reciprocal);
#else
  return static_cast<float>(1 << fraction_bits(bits)) / step;
#endif
}

ACTNN_HOST_DEVICE constexpr EncodingGrid encoding_grid(GroupParameters parameters, int bits, ElementType type) {
  const float step = parameter_to_float(parameters.step, type);
  return {parameter_to_float(parameters.minimum, type), step == 0.0F ? 0.0F : steps_per_unit(step, bits)};
}

/// 2^23: adding it to a value in [0, 2^23) leaves the value, rounded to an integer, in the low bits of the sum.
inline constexpr float kIntegerInMantissa = 8388608.0F;

/// The position of one element on the grid of a representable group, in units of 2^-fraction_bits of a step, in the low
/// 23 bits.
ACTNN_HOST_DEVICE constexpr uint32_t position_on_grid(float x, const EncodingGrid& grid) {
#if defined(__CUDA_ARCH__)
  return bits_of(__fadd_rn(__fmul_rn(x - grid.minimum, grid.inverse_step), kIntegerInMantissa));
#else
  return bits_of((x - grid.minimum) * grid.inverse_step + kIntegerInMantissa);
#endif
}

/// The code at a position to which the noise was added.
ACTNN_HOST_DEVICE constexpr uint32_t code_at(uint32_t noisy_position, int bits) {
  return (noisy_position >> fraction_bits(bits)) & highest_code(bits);
}

/// The code of one element of a representable group: floor((x - minimum) / step + noise / 2^fraction_bits), in
/// [0, 2^bits - 1]. Uniform `noise` of `fraction_bits(bits)` bits makes the decoded value's expectation x;
/// `half_step(bits)` rounds to nearest.
///
/// No clamp is needed. Rounding is monotonic, so x - minimum <= range <= levels * step holds in float too, and the
/// product with inverse_step exceeds levels * 2^fraction_bits by less than half a unit of the integer that 2^23 + ...
/// rounds to.
ACTNN_HOST_DEVICE constexpr uint32_t encode(float x, const EncodingGrid& grid, uint32_t noise, int bits) {
  return code_at(position_on_grid(x, grid) + noise, bits);
}

/// The value of a code. The product is exact (at most 8 x 11 significant bits), so fused or not makes no difference.
ACTNN_HOST_DEVICE constexpr float decode(uint32_t code, float minimum, float step) {
#if defined(__CUDA_ARCH__)
  // Conversion instructions run at a sixth of the rate of additions.
  return __fmaf_rn(float_of(bits_of(kIntegerInMantissa) | code) - kIntegerInMantissa, step, minimum);
#else
  return minimum + static_cast<float>(code) * step;
#endif
}

}  // namespace actnn
