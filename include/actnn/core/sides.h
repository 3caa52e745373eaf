#pragma once

#include <cstdint>

#include "actnn/core/host_device.h"
#include "actnn/core/rounding.h"
#include "actnn/core/scalar_types.h"

/// \file
/// Copies of elements whose side of an activation's kink is known exactly, from a mask: distances from the kink, at 0,
/// on a grid of each side. Noise decides rounding and is subtracted as in core/rounding.h; a copy is unbiased given the
/// side, and so is every function of it that is linear on each side.

namespace actnn {

/// The steps of a group's two grids, bfloat16, in the place of `GroupParameters`. 0 where no element has a distance;
/// the sign of `below` is `kHasNanCode`. Unrepresentable: NaN above, 0 below.
struct alignas(4) SideSteps {
  uint16_t above;
  uint16_t below;
};
static_assert(sizeof(SideSteps) == sizeof(GroupParameters));

/// The largest finite distances of a group from 0.
struct SideRange {
  float above = 0.0F;
  float below = 0.0F;
  bool all_finite = true;

  ACTNN_HOST_DEVICE constexpr void add(float s) {
    if (!is_finite(s)) {
      all_finite = false;
      return;
    }
    above = s > above ? s : above;
    below = -s > below ? -s : below;
  }
};

/// The step of a side whose farthest element is so far away; the distance is rounded up to a bfloat16 first.
ACTNN_HOST_DEVICE constexpr uint16_t side_step(float farthest, float levels) {
  return farthest == 0.0F
             ? uint16_t{0}
             : smallest_step(to_float(BFloat16{round_parameter_up(farthest, ElementType::kBFloat16)}), levels);
}

/// Steps that reach the farthest elements of `bits` (1..7) of distance. Elements that are infinite or NaN get the last
/// code of their side, or, with 1 bit, make the group unrepresentable.
ACTNN_HOST_DEVICE constexpr SideSteps choose_sides(const SideRange& range, int bits) {
  const uint32_t highest = highest_code(bits) - (range.all_finite ? 0 : 1);
  if (highest == 0) {
    return {kNanBFloat16, 0};
  }
  const auto levels = static_cast<float>(highest);
  const uint16_t above = side_step(range.above, levels);
  const uint16_t below = side_step(range.below, levels);
  // One step more than the farthest: see `choose_grid`.
  if (!is_finite(step_to_float(above) * (levels + 1.0F)) || !is_finite(step_to_float(below) * (levels + 1.0F))) {
    return {kNanBFloat16, 0};
  }
  return {above, static_cast<uint16_t>(below | (range.all_finite ? 0 : kHasNanCode))};
}

struct SideEncoder {
  float above;  ///< 2^8 / step; 0 where there is no step
  float below;

  ACTNN_HOST_DEVICE constexpr explicit SideEncoder(SideSteps steps)
      : above(noises_per_unit(step_to_float(steps.above))), below(noises_per_unit(step_to_float(steps.below))) {}

  /// The code of a finite element with 8 bits of noise. An element on the wrong side of 0 by the rounding of its
  /// computation counts as 0.
  ACTNN_HOST_DEVICE constexpr uint32_t encode(float s, bool side, uint32_t noise, int bits) const {
    const float scaled = s * (side ? above : -below);
    const float position = (scaled > 0.0F ? scaled : 0.0F) + kIntegerInMantissa;
    return code_at(bits_of(position) + noise, bits);
  }
};

/// Of each side, the grid of `DecodingGrid`; below 0, distances count downwards. With up to 7 bits every value is
/// exact.
struct SideDecoder {
  DecodingGrid above;
  DecodingGrid below;

  ACTNN_HOST_DEVICE constexpr SideDecoder(SideSteps steps, bool dithered)
      : above(is_nan(to_float(BFloat16{steps.above})) ? to_float(BFloat16{steps.above}) : 0.0F,
              step_to_float(steps.above), dithered),
        below(is_nan(to_float(BFloat16{steps.above})) ? to_float(BFloat16{steps.above}) : 0.0F,
              -step_to_float(steps.below), dithered) {}

  ACTNN_HOST_DEVICE constexpr float value(bool side, uint32_t n) const {
    return side ? above.value(n) : below.value(n);
  }
};

}  // namespace actnn
