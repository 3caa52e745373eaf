#pragma once

#include <cstdint>

#include "actnn/core/sign_split.h"
#include "src/cuda/split_tiles.cuh"

/// \file
/// Packing of a lane's copies in the groups of core/sign_split.h: steps, sides, values.

namespace actnn::cuda {

/// What a group's steps are chosen by. As integers, numbers above 0 are in their order; as unsigned ones, those below 0
/// are larger than all others, in the order of their magnitudes. An instruction finds the largest of three.
class SideMaxima {
 public:
  __device__ void add(float first, float second) {
    above_ = __vimax3_s32(above_, static_cast<int>(bits_of(first)), static_cast<int>(bits_of(second)));
    below_ = __vimax3_u32(below_, bits_of(first), bits_of(second));
  }

  /// The steps of the group; NaN if a copy is not finite. `keeps_below`: false if what is below 0 counts as 0.
  __device__ SplitSteps steps(bool finite, bool keeps_below, int bits, ElementType type) const {
    int above = finite ? above_ : static_cast<int>(kInfinityFloat32);
    int below = keeps_below ? static_cast<int>(max(below_, kSign) - kSign) : 0;
#pragma unroll
    for (int distance = kSplitLanes / 2; distance > 0; distance /= 2) {
      above = max(above, __shfl_xor_sync(~0U, above, distance));
      below = max(below, __shfl_xor_sync(~0U, below, distance));
    }
    return split_steps(float_of(static_cast<uint32_t>(above)), float_of(static_cast<uint32_t>(below)), bits, type);
  }

 private:
  static constexpr uint32_t kSign = 0x80000000;

  int above_ = 0;
  uint32_t below_ = 0;
};

/// Plane 0 of a lane. A row's bits are added up in the mantissa of a float: multiply-adds have arithmetic units to
/// spare.
class LaneSides {
 public:
  __device__ void add(int j, int k, float z) {
    float above;
    asm("set.gt.f32.f32 %0, %1, 0f00000000;" : "=f"(above) : "f"(z));
    rows_[j] = __fmaf_rn(above, static_cast<float>(1U << k), rows_[j]);
  }

  __device__ uint32_t word() const {
    const uint32_t first = __byte_perm(bits_of(rows_[0]), bits_of(rows_[1]), 0x0040);
    const uint32_t second = __byte_perm(bits_of(rows_[2]), bits_of(rows_[3]), 0x0040);
    return __byte_perm(first, second, 0x5410);
  }

 private:
  static_assert(kLaneRows == 4);
  float rows_[kLaneRows] = {kIntegerInMantissa, kIntegerInMantissa, kIntegerInMantissa, kIntegerInMantissa};
};

/// `SplitEncoder::encode` of split channels with few instructions, for steps up to `kMostStep`. Positions are fractions
/// of 2^23, of which a saturating multiplication makes 0 on the other side of the kink. No limit is needed: steps are
/// rounded up, so that no copy is farther away than the highest value, and what a product exceeds it by is rounded
/// away.
class PositionOnSide {
 public:
  static constexpr float kMostStep = 0x1p119F;  ///< more has fractions of a unit that are not normal numbers

  __device__ explicit PositionOnSide(const SplitEncoder& encoder)
      : above_(encoder.above / kIntegerInMantissa), below_(-encoder.below / kIntegerInMantissa) {}

  __device__ static bool is_exact(const SplitGrid& grid) { return fmaxf(grid.above, grid.below) <= kMostStep; }

  template <bool kBelow>
  __device__ uint32_t operator()(float s) const {
    float position = __fmaf_rn(__saturatef(s * above_), kIntegerInMantissa, kIntegerInMantissa);
    if constexpr (kBelow) {
      position = __fmaf_rn(__saturatef(s * below_), kIntegerInMantissa, position);
    }
    return bits_of(position);
  }

 private:
  float above_;
  float below_;
};

/// The same for channels of any kind. A limit in units of 2^-16 of a step, before noise is added, is one of values too.
__device__ inline uint32_t position_of_any(float s, bool side, bool linear, const SplitEncoder& encoder) {
  const float units = linear ? (s - encoder.grid.lowest) * encoder.linear : s * (side ? encoder.above : -encoder.below);
  const auto most = static_cast<float>(encoder.highest << 16);
  return bits_of(fminf(fmaxf(units, 0.0F), most) + kIntegerInMantissa);
}

/// The noise of an octet that is rounded to nearest.
__device__ constexpr PhiloxBlock half_steps() {
  constexpr uint32_t kHalves = both_halves(half_step(kMinBits));
  return {{kHalves, kHalves, kHalves, kHalves}};
}

/// Rounds the value of row j, channel k by its noise.
__device__ inline void add_value(LaneValues& values, const PhiloxBlock& noise, int j, int k, uint32_t position) {
  // One instruction selects a half of a word of noise and adds it; the value is then in byte 2.
  const uint32_t half = k % 2 == 0 ? 0x0001U : 0x0100U;
  const uint32_t noisy = __dp2a_lo(noise.word[k / 2], half, position);
  const uint32_t selector = 0x3210U + ((6U - j) << (4 * j));
  values.channel[k] = __byte_perm(values.channel[k], noisy, selector);
}

/// The values of a lane, rounded by its noise; `position_of(j, k)`: of row j, channel k, in units of 2^-16 of a step,
/// as the bits of 2^23 and that many more.
template <class Place, class PositionOf>
__device__ LaneValues encode_lane(const Place& place, const RandomState& random, bool stochastic,
                                  PositionOf&& position_of) {
  LaneValues values;
#pragma unroll
  for (int j = 0; j < kLaneRows; ++j) {
    PhiloxBlock noise = half_steps();
    if (stochastic) {
      noise = random.block(place.counter(j));
    }
#pragma unroll
    for (int k = 0; k < kOctetChannels; ++k) {
      add_value(values, noise, j, k, position_of(j, k));
    }
  }
  return values;
}

/// Stores the planes of values; `words`: the lane's in the first of them.
__device__ inline void store_values(const LaneValues& values, int bits, uint32_t existing, uint32_t* words) {
  for_each_plane(bits, [&]<int plane>() { words[plane * kSplitLanes] = values.plane_word<plane>() & existing; });
}

}  // namespace actnn::cuda
