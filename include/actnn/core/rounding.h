#pragma once

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/host_device.h"
#include "actnn/core/philox.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The arithmetic of the packed format: a group's grid, one element's code, one code's value. Plain IEEE single
/// precision without contraction, so that every processor gives the same bytes and the same values.
///
/// Elements are rounded with 8 bits of noise k, u = (k + 1/2) / 256:
///
///     code = floor((x - minimum) / step + u)      value = minimum + step (code - u + 1/2)      (subtractive dither)
///
/// The decoder knows k, because it draws the same numbers again. The error is then uniform in +-step / 2 whatever x is:
/// unbiased, with a variance of step^2 / 12, half of what decoding without the noise has on average (Roberts, "Picture
/// coding using pseudo-random noise", 1962; Schuchman, "Dither signals and their effect on quantization noise", 1964).

namespace actnn {

/// How elements become codes, and codes elements again.
enum class Rounding : uint8_t {
  kDithered,    ///< at random, and the decoder subtracts the noise: unbiased, the error independent of the element
  kStochastic,  ///< at random: unbiased, with twice the variance; values are points of the grid
  kNearest      ///< to the nearest point of the grid: biased
};

/// What is stored per group: the grid's first point, of the type `parameter_to_float` reads for the elements, and the
/// distance of its points, a bfloat16. The step is 0 where all elements are one such value. The sign of the step says
/// that the last code stands for NaN, and that the grid ends one point earlier. A group that cannot be represented (see
/// `choose_grid`) has minimum NaN and step 0.
struct alignas(4) GroupParameters {
  uint16_t minimum;
  uint16_t step;
};
static_assert(sizeof(GroupParameters) == 4);
inline constexpr uint16_t kHasNanCode = 0x8000;

/// The highest code, 2^bits - 1.
ACTNN_HOST_DEVICE constexpr uint32_t highest_code(int bits) { return (1u << bits) - 1u; }

/// Bits of noise, and of a code's fraction.
inline constexpr int kNoiseBits = 8;
inline constexpr uint32_t kNoises = 1u << kNoiseBits;

/// The noise of rounding to nearest: half a step.
inline constexpr uint32_t kHalfStep = kNoises / 2;

/// The smallest step, 2^-110: keeps 2^8 / step finite, and products of steps normal numbers.
inline constexpr uint16_t kSmallestStep = (127 - 110) << 7;

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

ACTNN_HOST_DEVICE constexpr float step_to_float(uint16_t step) {
  return to_float(BFloat16{static_cast<uint16_t>(step & ~kHasNanCode)});
}

/// The smallest bfloat16 of which `levels` reach over `range`: levels * step >= range, which is exact.
///
/// A product instead of the quotient: it is off by less than 2^-22 of itself, and a bfloat16 has 8 bits, so that
/// rounding the product down gives the step or one of the two values before it.
ACTNN_HOST_DEVICE constexpr uint16_t smallest_step(float range, float levels) {
  auto step = static_cast<uint16_t>(bits_of(range * (1.0F / levels)) >> 16);
  step = static_cast<uint16_t>(step + (step_to_float(step) * levels < range ? 1 : 0));
  step = static_cast<uint16_t>(step + (step_to_float(step) * levels < range ? 1 : 0));
  return step < kSmallestStep ? kSmallestStep : step;
}

/// The smallest and largest of the finite elements of a group, infinity and minus infinity if there are none.
struct GroupRange {
  float smallest = float_of(kInfinityFloat32);
  float largest = -float_of(kInfinityFloat32);
  bool all_finite = true;

  ACTNN_HOST_DEVICE constexpr void add(float x) {
    if (!is_finite(x)) {
      all_finite = false;
      return;
    }
    smallest = x < smallest ? x : smallest;
    largest = x > largest ? x : largest;
  }
};

/// The grid of a group: its ends are rounded outward to parameter values and the step up, so that
/// [minimum, minimum + levels * step] covers its finite elements and none is clipped; levels = 2^bits - 1, or one less
/// if elements are infinite or NaN, which get the last code. Step 0: both ends are one parameter value.
/// Unrepresentable, so that all of them decode to NaN, are groups without a finite element, those of 1 bit with one
/// that is not finite, and those whose grid has an end that is not finite in the element type, or a width that, with
/// one more step, is not finite in float.
ACTNN_HOST_DEVICE constexpr GroupParameters choose_grid(const GroupRange& range, int bits, ElementType type) {
  const uint32_t highest = highest_code(bits) - (range.all_finite ? 0 : 1);
  if (range.smallest > range.largest || highest == 0) {
    return unrepresentable_group(type);
  }
  const uint16_t flag = range.all_finite ? 0 : kHasNanCode;
  // -0 becomes +0: which zero is the minimum must not depend on the order of comparison.
  const uint16_t minimum = range.smallest == 0.0F ? uint16_t{0} : round_parameter_down(range.smallest, type);
  const float minimum_value = parameter_to_float(minimum, type);
  const float width = parameter_to_float(round_parameter_up(range.largest, type), type) - minimum_value;
  const auto levels = static_cast<float>(highest);
  const uint16_t step = width == 0.0F ? uint16_t{0} : smallest_step(width, levels);
  // What the decoder multiplies must not overflow before the minimum is added: a fused operation would hide that. It is
  // below one step more than the grid's width.
  if (!is_finite(step_to_float(step) * (levels + 1.0F))) {
    return unrepresentable_group(type);
  }
  // Values may lie half a step beyond the ends.
  const float half = 0.5F * step_to_float(step);
  const float end = minimum_value + step_to_float(step) * levels;
  return is_finite_as(end + half, type) && is_finite_as(minimum_value - half, type)
             ? GroupParameters{minimum, static_cast<uint16_t>(step | flag)}
             : unrepresentable_group(type);
}

/// A group's parameters as the encoder uses them.
struct EncodingGrid {
  float minimum;
  float inverse_step;  ///< 2^8 / step; 0 for a constant group
};

/// 2^8 / step, rounded to nearest, for the steps that grids have; 0 for 0.
ACTNN_HOST_DEVICE constexpr float noises_per_unit(float step) {
  if (step == 0.0F) {
    return 0.0F;
  }
#if defined(__CUDA_ARCH__)
  // One Newton step from the hardware's reciprocal, in a quarter of a division's instructions. It is exact to the last
  // bit for each of the 16-bit steps (a test compares them all); scaling by a power of two keeps every intermediate a
  // normal number.
  const float divisor = step * (1.0F / kNoises);
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(divisor));
  return __fmaf_rn(reciprocal, __fmaf_rn(-divisor, reciprocal, 1.0F), reciprocal);
#else
  return static_cast<float>(kNoises) / step;
#endif
}

ACTNN_HOST_DEVICE constexpr EncodingGrid encoding_grid(GroupParameters parameters, ElementType type) {
  return {parameter_to_float(parameters.minimum, type), noises_per_unit(step_to_float(parameters.step))};
}

/// 2^23: adding it to a value in [0, 2^23) leaves the value, rounded to an integer, in the low bits of the sum.
inline constexpr float kIntegerInMantissa = 8388608.0F;

/// The position of one element on the grid of a representable group, in units of 2^-8 of a step, in the low 23 bits.
ACTNN_HOST_DEVICE constexpr uint32_t position_on_grid(float x, const EncodingGrid& grid) {
#if defined(__CUDA_ARCH__)
  return bits_of(__fadd_rn(__fmul_rn(x - grid.minimum, grid.inverse_step), kIntegerInMantissa));
#else
  return bits_of((x - grid.minimum) * grid.inverse_step + kIntegerInMantissa);
#endif
}

/// The code at a position to which the noise was added.
ACTNN_HOST_DEVICE constexpr uint32_t code_at(uint32_t noisy_position, int bits) {
  return (noisy_position >> kNoiseBits) & highest_code(bits);
}

/// The code of a finite element of a representable group, with 8 bits of noise; `kHalfStep` rounds to nearest. The
/// position is rounded to the nearest multiple of step / 256; that is all that is lost, at most step / 512, with any
/// noise.
///
/// No clamp is needed. Rounding is monotonic, so x - minimum <= range <= levels * step holds in float too, and the
/// product with inverse_step exceeds levels * 2^8 by less than half a unit of the integer that 2^23 + ... rounds to.
ACTNN_HOST_DEVICE constexpr uint32_t encode(float x, const EncodingGrid& grid, uint32_t noise, int bits) {
  return code_at(position_on_grid(x, grid) + noise, bits);
}

/// What codes are read with. `kStochastic` and `kNearest` decode alike.
ACTNN_HOST_DEVICE constexpr bool subtracts_noise(Rounding rounding) { return rounding == Rounding::kDithered; }

/// A group's parameters as the decoder uses them: value = start + scale n, where n is the code with 8 more bits below
/// it: those of 255 - noise, or zeros where no noise is subtracted. Products are exact (at most 16 x 8 significant
/// bits) and finite, so that fused or not makes no difference.
struct DecodingGrid {
  float start;
  float scale;

  ACTNN_HOST_DEVICE constexpr DecodingGrid(float minimum, float step, bool dithered)
      : start(dithered ? minimum - 0.498046875F * step : minimum), scale(step * (1.0F / kNoises)) {}
  ACTNN_HOST_DEVICE constexpr DecodingGrid(GroupParameters parameters, ElementType type, bool dithered)
      : DecodingGrid(parameter_to_float(parameters.minimum, type), step_to_float(parameters.step), dithered) {}

  ACTNN_HOST_DEVICE constexpr float value(uint32_t n) const {
#if defined(__CUDA_ARCH__)
    // Conversion instructions run at a sixth of the rate of additions.
    return __fmaf_rn(float_of(bits_of(kIntegerInMantissa) | n) - kIntegerInMantissa, scale, start);
#else
    return start + static_cast<float>(n) * scale;
#endif
  }
};

/// n of `DecodingGrid`.
ACTNN_HOST_DEVICE constexpr uint32_t dithered_code(uint32_t code, uint32_t noise) {
  return code << kNoiseBits | (kNoises - 1 - noise);
}
ACTNN_HOST_DEVICE constexpr uint32_t undithered_code(uint32_t code) { return code << kNoiseBits; }

}  // namespace actnn
