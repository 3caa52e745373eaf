#pragma once

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/host_device.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The arithmetic of the packed format: a group's grid, one element's code, one code's value. Plain IEEE single precision
/// without contraction, so that every processor gives the same bytes.

namespace actnn {

/// What is stored per group: the grid's first point and the distance of its points, each 16 bits.
/// A constant group has step 0. A group that cannot be represented (see `choose_grid`) has minimum NaN and step 0.
struct GroupParameters {
  uint16_t minimum;
  uint16_t step;
};
static_assert(sizeof(GroupParameters) == 4);

/// The highest code, 2^bits - 1.
ACTNN_HOST_DEVICE constexpr uint32_t highest_code(int bits) { return (1u << bits) - 1u; }

/// Bits of a code's fraction, and so of the noise that decides its rounding. An 8-bit code has 14, because code and fraction
/// together must fit the 23 bits of a float's mantissa.
ACTNN_HOST_DEVICE constexpr int fraction_bits(int bits) { return bits == 8 ? 14 : 16; }

/// The noise of deterministic rounding: half a step.
ACTNN_HOST_DEVICE constexpr uint32_t half_step(int bits) { return 1u << (fraction_bits(bits) - 1); }

/// The smallest step of bfloat16 grids, 2^-110: keeps 2^16 / step finite.
inline constexpr uint16_t kSmallestBFloat16Step = (127 - 110) << 7;

ACTNN_HOST_DEVICE constexpr GroupParameters unrepresentable_group(ElementType type) {
  return {has_float16_parameters(type) ? kNanFloat16 : kNanBFloat16, 0};
}

ACTNN_HOST_DEVICE constexpr bool is_finite_as(float x, ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
      return (round_to_float16(x).bits & 0x7C00u) != 0x7C00u;
    case ElementType::kBFloat16:
      return is_finite(to_float(round_to_bfloat16(x)));
    case ElementType::kFloat32:
      break;
  }
  return is_finite(x);
}

/// The grid of a group with the given smallest and largest element: the minimum is rounded down and the step up, so that
/// [minimum, minimum + (2^bits - 1) * step] covers the group and no element is clipped. A constant group keeps its value
/// rounded to nearest. Unrepresentable are groups with an infinite or NaN element (`all_finite` false) and groups whose
/// grid has an end that is not finite in the element type: they decode to NaN.
ACTNN_HOST_DEVICE constexpr GroupParameters choose_grid(float smallest, float largest, bool all_finite, int bits,
                                                        ElementType type) {
  if (!all_finite) {
    return unrepresentable_group(type);
  }
  smallest += 0.0F;  // -0 becomes +0: which zero is the minimum must not depend on the order of comparison
  if (smallest == largest) {
    const uint16_t value = round_parameter_to_nearest(smallest, type);
    return is_finite(parameter_to_float(value, type)) ? GroupParameters{value, 0} : unrepresentable_group(type);
  }
  const uint16_t minimum = round_parameter_down(smallest, type);
  const float minimum_value = parameter_to_float(minimum, type);
  const float range = largest - minimum_value;
  const auto levels = static_cast<float>(highest_code(bits));
  if (!is_finite(range)) {
    return unrepresentable_group(type);
  }
  uint16_t step = round_parameter_up(range / levels, type);
  // The quotient was rounded to nearest and may have been rounded down; step * levels is exact.
  if (parameter_to_float(step, type) * levels < range) {
    step = detail::next_up(step);
  }
  if (!has_float16_parameters(type) && step < kSmallestBFloat16Step) {
    step = kSmallestBFloat16Step;
  }
  const float end = minimum_value + parameter_to_float(step, type) * levels;
  return is_finite_as(end, type) ? GroupParameters{minimum, step} : unrepresentable_group(type);
}

/// A group's parameters as the encoder uses them.
struct EncodingGrid {
  float minimum;
  float inverse_step;  ///< 2^fraction_bits / step; 0 for a constant group
};

ACTNN_HOST_DEVICE constexpr EncodingGrid encoding_grid(GroupParameters parameters, int bits, ElementType type) {
  const float step = parameter_to_float(parameters.step, type);
  return {parameter_to_float(parameters.minimum, type),
          step == 0.0F ? 0.0F : static_cast<float>(1 << fraction_bits(bits)) / step};
}

/// 2^23: adding it to a value in [0, 2^23) leaves the value, rounded to an integer, in the low bits of the sum.
inline constexpr float kIntegerInMantissa = 8388608.0F;

/// The code of one element of a representable group: floor((x - minimum) / step + noise / 2^fraction_bits), in
/// [0, 2^bits - 1]. Uniform `noise` of `fraction_bits(bits)` bits makes the decoded value's expectation x; `half_step(bits)`
/// rounds to nearest.
///
/// No clamp is needed. Rounding is monotonic, so x - minimum <= range <= levels * step holds in float too, and the product
/// with inverse_step exceeds levels * 2^fraction_bits by less than half a unit of the integer that 2^23 + ... rounds to.
ACTNN_HOST_DEVICE constexpr uint32_t encode(float x, const EncodingGrid& grid, uint32_t noise, int bits) {
#if defined(__CUDA_ARCH__)
  const float scaled = __fmul_rn(x - grid.minimum, grid.inverse_step);
#else
  const float scaled = (x - grid.minimum) * grid.inverse_step;
#endif
  return ((bits_of(scaled + kIntegerInMantissa) + noise) >> fraction_bits(bits)) & highest_code(bits);
}

/// The value of a code. The product is exact (at most 8 x 11 significant bits), so fused or not makes no difference.
ACTNN_HOST_DEVICE constexpr float decode(uint32_t code, float minimum, float step) {
  return minimum + static_cast<float>(code) * step;
}

}  // namespace actnn
