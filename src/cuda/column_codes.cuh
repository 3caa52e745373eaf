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

/// Ones for the codes of a thread's rows that exist.
struct RowMask {
  uint32_t half[2];

  __device__ RowMask(int rows, int bits) : half{mask(rows * bits), mask((rows - 4) * bits)} {}

 private:
  __device__ static uint32_t mask(int width) { return width <= 0 ? 0 : width >= 32 ? ~0U : (1U << width) - 1; }
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

  __device__ CodeHalves codes(const RowMask& existing) const {
    return {{codes_.half[0] & existing.half[0], codes_.half[1] & existing.half[1]}};
  }

 private:
  CodeHalves codes_{};
  uint32_t factor_;
};

/// The number itself, of which the compiler then knows nothing.
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

  /// `existing`: of codes of one bit.
  __device__ uint8_t bits(const RowMask& existing) const {
    return static_cast<uint8_t>(bits_of(bits_) & (existing.half[0] | existing.half[1] << 4));
  }

 private:
  float bits_ = kIntegerInMantissa;
};

/// What the codes of a packed tensor are decoded with.
class NoiseSource {
 public:
  __device__ explicit NoiseSource(const PackedHeader& header)
      : random_(header.random()), mask_(header.dithered() ? ~0U : 0U) {}

  __device__ bool dithered() const { return mask_ != 0; }

  /// The bytes below the codes of two channels (`DecodingGrid`).
  __device__ PhiloxBlock below_codes(uint64_t block) const {
    PhiloxBlock noise = random_.block(block);
#pragma unroll
    for (uint32_t& word : noise.word) {
      word = ~word & mask_;
    }
    return noise;
  }

 private:
  RandomState random_;
  uint32_t mask_;
};

/// Decodes the eight copies of a channel. On the grids of sides, code and noise stand in the mantissa of 2^22, whose
/// last bit is a half: half a step, which dither subtracts, goes with the power of two in one subtraction.
class OctetDecoder {
 public:
  /// `bits`: of codes; `dithered`: whether noise is subtracted.
  __device__ OctetDecoder(int bits, bool dithered)
      : bits_(bits),
        middle_(kHalfInMantissa + (dithered ? 127.5F : 0.0F)),
        mask_(highest_code(bits)),
        dithered_(dithered) {}

  /// `below`: the noise of the channel, of rows 0-3 and 4-7; bit j of `sides`: that of row j. Returns bits of the
  /// copies that are NaN.
  template <bool kSided>
  __device__ uint32_t decode(const CodeHalves& codes, const uint32_t (&below)[2], GroupParameters parameters,
                             ElementType type, uint32_t sides, float (&copies)[kRows]) const {
    if constexpr (kSided) {
      // A group that cannot be represented has NaN in the place of its first step.
      const float above_step = to_float(BFloat16{parameters.minimum});
      const float above = above_step * (1.0F / kNoises);
      const float below_scale = is_nan(above_step) ? above_step : -step_to_float(parameters.step) * (1.0F / kNoises);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const float n = float_of(noisy<2>(codes, below, j, bits_of(kHalfInMantissa))) - middle_;
        copies[j] = n * (((sides >> j) & 1U) != 0 ? above : below_scale);
      }
    } else {
      const DecodingGrid grid(parameters, type, dithered_);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const float n = float_of(noisy<1>(codes, below, j, bits_of(kIntegerInMantissa))) - kIntegerInMantissa;
        copies[j] = __fmaf_rn(n, grid.scale, grid.start);
      }
    }
    uint32_t nans =
        is_nan(kSided ? to_float(BFloat16{parameters.minimum}) : parameter_to_float(parameters.minimum, type)) ? 0xFFU
                                                                                                               : 0;
    if ((parameters.step & kHasNanCode) != 0) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (((codes.half[j / 4] >> (j % 4 * bits_)) & mask_) == mask_) {
          copies[j] = float_of(kNanFloat32);
          nans |= 1U << j;
        }
      }
    }
    return nans;
  }

 private:
  static constexpr float kHalfInMantissa = 4194304.0F;

  /// kUnit times code and noise of row j, in the low bits of `power`. The code is rotated to where it belongs.
  template <uint32_t kUnit>
  __device__ uint32_t noisy(const CodeHalves& codes, const uint32_t (&below)[2], int j, uint32_t power) const {
    constexpr int kPlace = kNoiseBits + (kUnit == 2 ? 1 : 0);
    const uint32_t half = codes.half[j / 4];
    const uint32_t rotated = __funnelshift_l(half, half, kPlace - j % 4 * bits_);
    return __dp4a(below[j / 4], kUnit << (8 * (j % 4)), (rotated & (mask_ << kPlace)) | power);
  }

  int bits_;
  float middle_;
  uint32_t mask_;
  bool dithered_;
};

}  // namespace actnn::cuda
