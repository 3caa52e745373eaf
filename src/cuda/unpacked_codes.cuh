#pragma once

#include <cstdint>

#include "actnn/core/rounding.h"

/// \file
/// From packed codes in registers to the numbers n of DecodingGrid: codes with 8 bits of noise below them.

namespace actnn::cuda {

/// The upper half of the bits of 2^23: above a number n of 16 bits it makes the float 2^23 + n. An instruction that
/// converts integers would run at a quarter of the rate.
inline constexpr uint32_t kMantissaHalf = 0x4B00;
static_assert(bits_of(kIntegerInMantissa) == kMantissaHalf << 16);

/// Whether codes lie within bytes, so that they can be spread over bytes all at once.
constexpr bool divides_bytes(int bits) { return 8 % bits == 0; }

/// The 8 codes of up to 4 bits in the low bits of a word, one a byte: `word[0]` has the even ones, `word[1]` the odd
/// ones. What lies above the codes is ignored.
template <int kBits>
struct SpreadCodes {
  static_assert(kBits <= 4 && divides_bytes(kBits));
  uint32_t word[2];

  __device__ explicit SpreadCodes(uint32_t packed) {
    constexpr uint32_t kBytes = 0x01010101u * highest_code(kBits);
    if constexpr (kBits == 1) {
      // Four copies, 6 bits apart, put every other code into the lowest bit of a byte. Where two copies meet, the sum
      // carries into an odd place, which no code is in.
      constexpr uint32_t kCopies = 1u + (1u << 6) + (1u << 12) + (1u << 18);
      word[0] = ((packed & 0x55u) * kCopies) & kBytes;
      word[1] = (((packed >> 1) & 0x55u) * kCopies) & kBytes;
    } else {
      if constexpr (kBits == 2) {
        // Two codes a byte, like those of 4 bits.
        packed = __byte_perm(packed, 0, 0x4140);
        packed = (packed | (packed << 4)) & 0x0F0F0F0Fu;
      }
      word[0] = packed & kBytes;
      word[1] = (packed >> kBits) & kBytes;
    }
  }
};

/// 32 bits of a string of words from `position` on, which is known to the compiler after unrolling and may be negative.
/// Only the lowest `width` are needed.
template <int count>
__device__ uint32_t window(const uint32_t (&words)[count], int position, int width) {
  if (position < 0) {
    return words[0] << -position;
  }
  const int word = position / 32;
  const int shift = position % 32;
  return shift + width > 32 ? __funnelshift_r(words[word], words[word + 1], shift) : words[word] >> shift;
}

/// Selects for `__byte_perm(codes, noise, ...)` a byte of noise and above it a byte of codes.
constexpr uint32_t byte_selector(int code_byte, int noise_byte) {
  return static_cast<uint32_t>(4 + noise_byte) | static_cast<uint32_t>(code_byte) << 4;
}

/// The floats 2^23 + n of `count` neighbouring elements, 4 or 8. `packed`: their codes, from bit 0 on. `noise`: the low
/// bytes of n, four a word.
template <int kBits, int kWords, int count>
__device__ void numbers_in_mantissas(const uint32_t (&packed)[kWords], const uint32_t (&noise)[count / 4],
                                     float (&numbers)[count]) {
  if constexpr (divides_bytes(kBits)) {
    uint32_t codes[2];
    if constexpr (kBits == 8) {
      codes[0] = packed[0];
      codes[1] = packed[kWords - 1];
    } else {
      const SpreadCodes<kBits> spread(packed[0]);
      codes[0] = spread.word[0];
      codes[1] = spread.word[1];
    }
    // Elements k and k + 2 of each four have their codes in one word.
#pragma unroll
    for (int k = 0; k < count; k += k % 2 == 0 ? 1 : 3) {
      const uint32_t word = codes[kBits == 8 ? k / 4 : k % 2];
      const int byte = kBits == 8 ? k % 4 : k / 2;
      const int next = kBits == 8 ? byte + 2 : byte + 1;
      const uint32_t selector = byte_selector(byte, k % 4) | byte_selector(next, k % 4 + 2) << 8;
      const uint32_t both = __byte_perm(word, noise[k / 4], selector);
      numbers[k] = float_of(__byte_perm(both, kMantissaHalf, 0x5410));
      numbers[k + 2] = float_of(__byte_perm(both, kMantissaHalf, 0x5432));
    }
  } else {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const uint32_t code = window(packed, k * kBits - kNoiseBits, kNoiseBits + kBits) & (highest_code(kBits) << 8);
      numbers[k] = float_of(__byte_perm(code | (kMantissaHalf << 16), noise[k / 4], 0x3214 + k % 4));
    }
  }
}

}  // namespace actnn::cuda
