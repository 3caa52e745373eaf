#pragma once

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/rounding.h"
#include "src/cuda/tiles.cuh"

/// \file
/// Packing of a lane's octets in registers: from positions on the grid to codes in memory.

namespace actnn::cuda {

/// Puts the low `width` bits of `value` into a string of 32-bit words at bit `position`; where and how wide is known to
/// the compiler after unrolling.
template <int count>
__device__ void place(uint32_t (&words)[count], uint32_t value, int position, int width) {
  words[position / 32] |= value << (position % 32);
  if (position % 32 + width > 32) {
    words[position / 32 + 1] |= value >> (32 - position % 32);
  }
}

/// A packed octet in a lane's registers; codes of up to 4 bits fill the first word only.
struct PackedOctet {
  uint32_t word[2];
};

constexpr int packed_words(int bits) { return bits <= 4 ? 1 : 2; }

/// The noisy positions of an octet's elements on the grid. The code is byte 1; byte 2 is zero, since codes have at most
/// 8 bits.
struct NoisyOctet {
  uint32_t position[kOctet];
};

template <class Element>
__device__ NoisyOctet add_noise(const Octet<Element>& octet, const EncodingGrid& grid, const OctetNoise& noise) {
  NoisyOctet noisy;
#pragma unroll
  for (int k = 0; k < kOctet; ++k) {
    // One instruction selects a byte of a word and adds it.
    noisy.position[k] = __dp4a(noise.word[k / 4], 1u << (8 * (k % 4)), position_on_grid(octet[k], grid));
  }
  return noisy;
}

/// The codes at two noisy positions, one in each half of a word.
__device__ inline uint32_t pair_of_codes(uint32_t first, uint32_t second) { return __byte_perm(first, second, 0x2521); }

/// The codes at four noisy positions, one a byte.
__device__ inline uint32_t quad_of_codes(uint32_t p0, uint32_t p1, uint32_t p2, uint32_t p3) {
  return __byte_perm(__byte_perm(p0, p1, 0x0051), __byte_perm(p2, p3, 0x0051), 0x5410);
}

/// Two codes of 4 bits in each of bytes 1 and 3: with each two neighbours exchanged, a multiplication moves the second
/// of them above the first.
__device__ inline uint32_t joined_quad(const uint32_t (&position)[kOctet], int first) {
  return quad_of_codes(position[first + 1], position[first], position[first + 3], position[first + 2]) *
         (1u + (1u << 12));
}

/// The packed octet of up to 3 bits a code: codes of even and odd elements are joined in the two halves of a word by
/// multiplications, which have arithmetic units to themselves, and then the halves.
template <int kBits>
__device__ uint32_t pack_by_halves(const NoisyOctet& noisy) {
  constexpr int kPairs = kBits <= 2 ? 4 : 2;  // as many as fit 16 bits
  constexpr int kCodes = 2 * kPairs;
  uint32_t packed = 0;
#pragma unroll
  for (int first = 0; first < kOctet; first += kCodes) {
    uint32_t halves = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      halves +=
          pair_of_codes(noisy.position[first + 2 * i], noisy.position[first + 2 * i + 1]) * (1u << (2 * kBits * i));
    }
    const uint32_t joined = (halves & 0xFFFFu) | (halves >> (16 - kBits));
    packed |= joined << (first * kBits);
  }
  return packed;
}

template <int kBits>
__device__ PackedOctet pack(const NoisyOctet& noisy) {
  const uint32_t(&p)[kOctet] = noisy.position;
  if constexpr (kBits < 4) {
    return {{pack_by_halves<kBits>(noisy), 0}};
  } else if constexpr (kBits == 4) {
    return {{__byte_perm(joined_quad(p, 0), joined_quad(p, 4), 0x7531), 0}};
  } else if constexpr (kBits == 8) {
    return {{quad_of_codes(p[0], p[1], p[2], p[3]), quad_of_codes(p[4], p[5], p[6], p[7])}};
  } else {
    PackedOctet packed{};
#pragma unroll
    for (int k = 0; k < kOctet; ++k) {
      place(packed.word, code_at(p[k], kBits), k * kBits, kBits);
    }
    return packed;
  }
}

/// Lane r of each four neighbours gets octet r of all four, in their order.
template <int kBits>
__device__ void transpose(PackedOctet (&octets)[kLaneOctets], int lane) {
#pragma unroll
  for (int distance = 1; distance < kLaneOctets; distance *= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < kLaneOctets; ++i) {
      if ((i & distance) == 0) {
#pragma unroll
        for (int w = 0; w < packed_words(kBits); ++w) {
          uint32_t& low = octets[i].word[w];
          uint32_t& high = octets[i + distance].word[w];
          const uint32_t received = __shfl_xor_sync(~0u, upper ? low : high, distance);
          (upper ? low : high) = received;
        }
      }
    }
  }
}

/// Writes four neighbouring octets, `first` a multiple of 4, of a segment: kBits aligned words.
template <int kBits>
__device__ void store_octets(const PackedOctet (&octets)[kLaneOctets], uint8_t* codes, int64_t first) {
  uint32_t words[kBits] = {};
#pragma unroll
  for (int i = 0; i < kLaneOctets; ++i) {
#pragma unroll
    for (int w = 0; w < packed_words(kBits); ++w) {
      const int width = packed_words(kBits) == 1 ? 8 * kBits : w == 0 ? 32 : 8 * kBits - 32;
      place(words, octets[i].word[w], 8 * kBits * i + 32 * w, width);
    }
  }
  auto* target = reinterpret_cast<uint32_t*>(codes + first * kBits);
  constexpr int kVector = kBits % 4 == 0 ? 4 : kBits % 2 == 0 ? 2 : 1;
  // Asked of the segment's beginning, so that the warp takes one way.
  if (reinterpret_cast<uintptr_t>(codes) % (4 * kVector) == 0) {
#pragma unroll
    for (int i = 0; i < kBits; i += kVector) {
      if constexpr (kVector == 4) {
        *reinterpret_cast<uint4*>(target + i) = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
      } else if constexpr (kVector == 2) {
        *reinterpret_cast<uint2*>(target + i) = make_uint2(words[i], words[i + 1]);
      } else {
        target[i] = words[i];
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kBits; ++i) {
      target[i] = words[i];
    }
  }
}

}  // namespace actnn::cuda
