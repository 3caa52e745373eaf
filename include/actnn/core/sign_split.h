#pragma once

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/host_device.h"
#include "actnn/core/layout.h"
#include "actnn/core/philox.h"
#include "actnn/core/rounding.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The packed form of what a normalization and a piecewise linear activation after it need in backward: an exact bit
/// per element for its side of the activation's kink, and a copy of the element in `bits` - 1 bits (2..8 bits in all).
///
/// The elements are a matrix of rows (pixels of samples) x channels in row-major order: a channels_last tensor. Eight
/// *lanes* of 4 rows x 8 channels each are a *group*, which has a step for each side, 16 bits each. Lanes lie side by
/// side along the channels, as many as there are (1, 2, 4 or 8), the others behind them along the rows:
///
///     64 channels or more: a group is 4 rows x 64 channels       16 channels: 16 rows x 16 channels
///
///     | groups' steps: above0 below0 above1 below1 ... (2 x 2) | padding to 16 bytes | groups' words: plane x lane |
///
/// A word has one bit of the codes of a lane: bit 8 j + k is that of its row j, channel k. Plane 0 has the sides, plane
/// p > 0 bit p - 1 of the values. What lies beyond the last row or channel has code 0.
///
/// A channel's copies are of one of two kinds. *Split*: the kink is at 0, so that values are distances from it, on a
/// grid of their side; side and value of an element agree. *Linear*: values are on one grid that covers both sides, and
/// the side is a bit of its own. A normalization uses it for channels whose kink is far from all elements or nowhere
/// (weight near or equal to 0), where distances from the kink would be large. Both copies are unbiased given the side,
/// and the side is exact; so is then every function that is linear on each side.
///
/// Copies *without sides*, of normalized inputs whose sides are unknown or saved elsewhere: the packed form of linear
/// channels without plane 0. `bits` are planes of values then, 2..7, and grids those of `split_bits(bits)`: 2 bits are
/// the values 0..3.

namespace actnn {

inline constexpr int kSplitLanes = 8;
inline constexpr int kLaneRows = 4;
inline constexpr int kMinSplitBits = 2;

inline constexpr int kMostNormalizedBits = kMaxBits - 1;

/// Bits of the packed form that copies of `bits` without sides are a part of.
ACTNN_HOST_DEVICE constexpr int split_bits(int bits) { return bits + 1; }

/// Where the elements of a matrix are in its packed form. Sizes are templates over the integer type, as in
/// core/layout.h.
template <class Int>
struct SplitLayout {
  Int rows;
  int64_t channels;

  /// Lanes of a group side by side.
  ACTNN_HOST_DEVICE constexpr int lanes_across() const {
    return channels > 32 ? 8 : channels > 16 ? 4 : channels > 8 ? 2 : 1;
  }
  ACTNN_HOST_DEVICE constexpr int64_t group_channels() const { return lanes_across() * kOctet; }
  /// Rows of a group; row j of a lane is `lane_rows_apart()` rows behind row j - 1.
  ACTNN_HOST_DEVICE constexpr int64_t group_rows() const { return int64_t{lane_rows_apart()} * kLaneRows; }
  ACTNN_HOST_DEVICE constexpr int lane_rows_apart() const { return kSplitLanes / lanes_across(); }

  ACTNN_HOST_DEVICE constexpr int64_t channel_blocks() const { return ceil_div(channels, group_channels()); }
  constexpr Int row_blocks() const { return ceil_div(rows, group_rows()); }
  /// Group g has channels of block g % channel_blocks() and rows of block g / channel_blocks().
  constexpr Int groups() const { return row_blocks() * channel_blocks(); }

  constexpr Int bytes(int bits) const {
    return codes_offset(groups()) + groups() * static_cast<int64_t>(bits * kSplitLanes * sizeof(uint32_t));
  }

  /// Octets of channels of a row: what the counter of the noise counts.
  ACTNN_HOST_DEVICE constexpr int64_t row_octets() const { return ceil_div(channels, kOctet); }
};

/// The steps of a group: the highest value of a side is `levels` steps away from 0. NaN where an element is infinite or
/// NaN.
struct alignas(4) SplitSteps {
  uint16_t above;
  uint16_t below;
};
static_assert(sizeof(SplitSteps) == sizeof(GroupParameters));

/// The highest value of a code.
ACTNN_HOST_DEVICE constexpr uint32_t highest_split_value(int bits) { return highest_code(bits - 1); }

/// The step for values up to `largest`, at least 0 and perhaps infinite or NaN.
ACTNN_HOST_DEVICE constexpr uint16_t split_step(float largest, int bits, ElementType type) {
  const uint16_t nan = unrepresentable_group(type).minimum;
  if (!is_finite(largest)) {
    return nan;
  }
  if (largest == 0.0F) {
    return 0;
  }
  const uint16_t step = smallest_step(largest, static_cast<float>(highest_split_value(bits)), type);
  return is_finite(parameter_to_float(step, type)) ? step : nan;
}

/// Both steps of a group from the largest distance above and below 0; both NaN if one is.
ACTNN_HOST_DEVICE constexpr SplitSteps split_steps(float above, float below, int bits, ElementType type) {
  const SplitSteps steps{split_step(above, bits, type), split_step(below, bits, type)};
  const uint16_t nan = unrepresentable_group(type).minimum;
  return steps.above == nan || steps.below == nan ? SplitSteps{nan, nan} : steps;
}

/// A group's grids as decoding and encoding use them.
struct SplitGrid {
  float above;   ///< step of the values above 0
  float below;   ///< and below
  float lowest;  ///< of the linear grid
  float linear;  ///< step of it

  ACTNN_HOST_DEVICE constexpr SplitGrid(SplitSteps steps, int bits, ElementType type)
      : above(parameter_to_float(steps.above, type)),
        below(parameter_to_float(steps.below, type)),
        lowest(-(static_cast<float>(highest_split_value(bits)) * below)),
        linear(above + below) {}

  /// The copy of an element.
  ACTNN_HOST_DEVICE constexpr float decode(bool side, uint32_t value, bool is_linear) const {
    return copy_at(side, static_cast<float>(value), is_linear);
  }
  ACTNN_HOST_DEVICE constexpr float copy_at(bool side, float value, bool is_linear) const {
    if (is_linear) {
      const float distance = value * linear;
      return lowest + distance;
    }
    return value * (side ? above : -below);
  }
};

/// Units of 2^-16 of a step per unit, for each grid; 0 for one without a range.
struct SplitEncoder {
  SplitGrid grid;
  float above;
  float below;
  float linear;
  uint32_t highest;  ///< value

  ACTNN_HOST_DEVICE constexpr SplitEncoder(SplitSteps steps, int bits, ElementType type)
      : grid(steps, bits, type),
        above(grid.above > 0.0F ? steps_per_unit(grid.above, bits - 1) : 0.0F),
        below(grid.below > 0.0F ? steps_per_unit(grid.below, bits - 1) : 0.0F),
        linear(grid.linear > 0.0F ? 65536.0F / grid.linear : 0.0F),
        highest(highest_split_value(bits)) {}

  /// The value of element `s`, rounded by 16 bits of noise; `half_step(2)` rounds to nearest. A split element on the
  /// wrong side of 0 by the rounding of its computation counts as 0.
  ACTNN_HOST_DEVICE constexpr uint32_t encode(float s, bool side, bool is_linear, uint32_t noise) const {
    const float distance = is_linear ? s - grid.lowest : side ? s : -s;
    const float scaled = distance * (is_linear ? linear : side ? above : below);
    const float units_away = scaled > 0.0F ? scaled : 0.0F;  // 0 too for a NaN, of an infinity without a scale
    const float shifted = units_away + kIntegerInMantissa;
    const uint32_t position = bits_of(shifted) - bits_of(kIntegerInMantissa);
    // The linear grid's ends are sums, and rounded.
    const uint32_t value = (position + noise) >> 16;
    return value < highest ? value : highest;
  }
};

}  // namespace actnn
