#pragma once

#include <cstdint>

#include "actnn/core/rounding.h"
#include "actnn/core/sides.h"
#include "src/cuda/column_stage.cuh"
#include "src/cuda/column_tiles.cuh"

/// \file
/// From elements to codes and back, for the eight rows of a thread.

namespace actnn::cuda {

/// The random bytes of a Philox block, which belong to the eight rows of two channels; or half steps.
class PairNoise {
 public:
  __device__ PairNoise(const RandomState& random, uint64_t block, bool is_random) : block_{} {
    if (is_random) {
      block_ = random.block(block);
    } else {
      constexpr uint32_t kHalves = kHalfStep * 0x01010101U;
      block_ = {{kHalves, kHalves, kHalves, kHalves}};
    }
  }

  /// A position plus the noise of row j of the first (0) or second (1) channel, in one instruction.
  __device__ uint32_t add(uint32_t position, int channel, int j) const {
    return __dp4a(block_.word[2 * channel + j / 4], 1U << (8 * (j % 4)), position);
  }

 private:
  PhiloxBlock block_;
};

/// The eight codes of a channel while its rows are visited.
class OctetEncoder {
 public:
  /// `factor`: 2^bits, of which the compiler should not know that it is a power: a multiplication adds, too.
  __device__ explicit OctetEncoder(uint32_t factor) : factor_(factor) {}

  /// `noisy`: bits of 2^23 + position + noise. Rows must come in the order 3, 2, 1, 0, 7, 6, 5, 4.
  __device__ void add(int j, uint32_t noisy) {
    uint32_t& half = codes_.half[j / 4];
    half = half * factor_ + __byte_perm(noisy, 0, 0x4441);
  }

  /// Those of rows that do not exist are arbitrary, and may reach into higher bits.
  __device__ const CodeHalves& codes() const { return codes_; }

 private:
  CodeHalves codes_{};
  uint32_t factor_;
};

/// The number itself, of which the compiler then knows nothing: it does not compute it again.
__device__ inline uint32_t opaque(uint32_t number) {
  asm volatile("" : "+r"(number));
  return number;
}

/// Row j of the order that `OctetEncoder` takes.
constexpr int encoding_order(int i) { return i / 4 * 4 + 3 - i % 4; }

/// The bits of a mask of a channel while its rows are visited, added up in the mantissa of a float: multiply-adds have
/// arithmetic units to spare.
class OctetMask {
 public:
  __device__ void add(int j, bool is_set) {
    bits_ = __fmaf_rn(is_set ? 1.0F : 0.0F, static_cast<float>(1U << j), bits_);
  }

  __device__ uint8_t bits() const { return static_cast<uint8_t>(bits_of(bits_)); }

 private:
  float bits_ = kIntegerInMantissa;
};

/// How codes of a group become copies: with n as of `DecodingGrid`, copy = start + scale (2 n - offset), where the
/// grids of sides have a scale of each side. The offset is that of a grid of sides with dither, 255; twice n - 127.5
/// is an integer, and the product is exact. Bits of 2^23 + 2 n come from the codes, so that one subtraction takes away
/// both.
struct alignas(16) DecodingColumn {
  float above;
  float below;
  float start;
  float power;  ///< 2^23 + offset; negative where no copy can be NaN

  __device__ static DecodingColumn plain(GroupParameters parameters, ElementType type, bool dithered) {
    const DecodingGrid grid(parameters, type, dithered);
    const float scale = 0.5F * grid.scale;
    const bool may_be_nan = is_nan(grid.start) || (parameters.step & kHasNanCode) != 0;
    return {scale, scale, grid.start, may_be_nan ? kIntegerInMantissa : -kIntegerInMantissa};
  }
  /// A group that cannot be represented has NaN in the place of its first step.
  __device__ static DecodingColumn sided(GroupParameters parameters, bool dithered) {
    constexpr float kHalf = 0.5F / kNoises;
    const float above = to_float(BFloat16{parameters.minimum});
    const bool may_be_nan = is_nan(above) || (parameters.step & kHasNanCode) != 0;
    const float power = kIntegerInMantissa + (dithered ? 255.0F : 0.0F);
    return {above * kHalf, -step_to_float(parameters.step) * kHalf, is_nan(above) ? above : 0.0F,
            may_be_nan ? power : -power};
  }

  /// Copies times a weight, plus a bias; of a plain grid.
  __device__ void scale(float weight, float bias) {
    above *= weight;
    below = above;
    start = __fmaf_rn(start, weight, bias);
  }

  __device__ bool may_be_nan() const { return power > 0.0F; }
  __device__ bool is_nan_group() const { return is_nan(start); }
};

/// Decodes the eight copies of a channel.
class OctetDecoder {
 public:
  /// `bits`: of codes; `dithered`: whether noise is subtracted.
  __device__ OctetDecoder(int bits, bool dithered)
      : bits_(bits),
        places_(opaque(highest_code(bits) << kPlace)),
        power_(bits_of(kIntegerInMantissa) + (dithered ? 2 * (kNoises - 1) : 0)),
        minus_two_(opaque(dithered ? 0xFE : 0)) {}

  /// `noise`: of the channel, of rows 0-3 and 4-7; bit j of `sides`: that of row j. Without `kBothSides`, copies below
  /// the kink are not used.
  template <bool kBothSides>
  __device__ void decode(const CodeHalves& codes, const uint32_t (&noise)[2], const DecodingColumn& column,
                         uint32_t sides, float (&copies)[kRows]) const {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const float n = float_of(noisy(codes, noise, j)) - fabsf(column.power);
      const bool is_above = !kBothSides || ((sides >> j) & 1U) != 0;
      copies[j] = __fmaf_rn(n, is_above ? column.above : column.below, column.start);
    }
  }

  /// Makes those copies NaN that are. Returns a bit for each of them.
  __device__ uint32_t set_nans(const CodeHalves& codes, const DecodingColumn& column, float (&copies)[kRows]) const {
    const uint32_t highest = highest_code(bits_);
    uint32_t nans = 0;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const bool is_last = ((codes.half[j / 4] >> (j % 4 * bits_)) & highest) == highest;
      if (column.is_nan_group() || (column.may_be_nan() && is_last)) {
        copies[j] = float_of(kNanFloat32);
        nans |= 1U << j;
      }
    }
    return nans;
  }

  /// Reads the octet that begins `shift` bits behind the first of three words. The halves have others above their bits.
  __device__ CodeHalves load(const uint32_t* words, uint32_t shift) const {
    const uint32_t low = __funnelshift_r(words[0], words[1], shift);
    const uint32_t high = __funnelshift_r(words[1], words[2], shift);
    return {{low, __funnelshift_rc(low, high, 4 * bits_)}};
  }

 private:
  static constexpr int kPlace = kNoiseBits + 1;

  /// Bits of 2^23 + 2 n of row j. The code is rotated to where it belongs; of the noise, twice the byte is subtracted
  /// from twice 255, in one instruction.
  __device__ uint32_t noisy(const CodeHalves& codes, const uint32_t (&noise)[2], int j) const {
    const uint32_t half = codes.half[j / 4];
    const uint32_t rotated = __funnelshift_l(half, half, kPlace - j % 4 * bits_);
    const uint32_t undithered = (rotated & places_) | power_;
    uint32_t dithered;
    asm("dp4a.u32.s32 %0, %1, %2, %3;"
        : "=r"(dithered)
        : "r"(noise[j / 4]), "r"(minus_two_ << (8 * (j % 4))), "r"(undithered));
    return dithered;
  }

  int bits_;
  uint32_t places_;
  uint32_t power_;
  uint32_t minus_two_;  ///< as a byte; 0 where no noise is subtracted
};

}  // namespace actnn::cuda
