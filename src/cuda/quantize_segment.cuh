#pragma once

#include <cstdint>

#include "actnn/core/rounding.h"
#include "actnn/cuda/quantize.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/octet.cuh"
#include "src/cuda/tiles.cuh"

/// \file
/// Quantization of a segment's tiles and groups by the warps of a kernel.

namespace actnn::cuda {

inline constexpr int kBlockWarps = kBlockThreads / kWarp;

/// One run of elements with one bit width.
template <class Element>
struct Segment {
  const Element* elements;
  int64_t count;
  int64_t group_size;
  GroupParameters* parameters;
  uint8_t* codes;        ///< begins at a multiple of 4 bytes
  uint64_t first_octet;  ///< counter of the first octet's noise
  int64_t code_end;      ///< bytes after the last code up to here become 0
};

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

/// The noisy positions of an octet's elements on the grid, of which the codes are the upper bits.
struct NoisyOctet {
  uint32_t position[kOctet];
};

/// `block`: the octet's noise, or a block of half steps.
template <class Element>
__device__ NoisyOctet add_noise(const Octet<Element>& octet, const EncodingGrid& grid, const PhiloxBlock& block) {
  NoisyOctet noisy;
#pragma unroll
  for (int k = 0; k < kOctet; ++k) {
    // One instruction selects a half of a word and adds it.
    const uint32_t half = k % 2 == 0 ? 0x0001u : 0x0100u;
    noisy.position[k] = __dp2a_lo(block.word[k / 2], half, position_on_grid(octet[k], grid));
  }
  return noisy;
}

/// The block that `add_noise` takes: 16-bit numbers with the fraction's bits, random or half a step.
template <bool kStochastic>
__device__ PhiloxBlock noise_block(const RandomState& random, uint64_t counter, int bits) {
  if (!kStochastic) {
    const uint32_t halves = half_step(bits) * 0x10001u;
    return {{halves, halves, halves, halves}};
  }
  PhiloxBlock block = random.block(counter);
  if (const int surplus = 16 - fraction_bits(bits); surplus != 0) {
    const uint32_t kept = (0xFFFFu >> surplus) * 0x10001u;
#pragma unroll
    for (uint32_t& word : block.word) {
      word = (word >> surplus) & kept;
    }
  }
  return block;
}

/// The codes at two noisy positions, of up to 7 bits, one in each half. A position has its code in byte 2 and part of a
/// positive float's exponent in byte 3, whose sign makes the zeros.
__device__ inline uint32_t pair_of_codes(uint32_t first, uint32_t second) {
  uint32_t pair;
  asm("prmt.b32 %0, %1, %2, 0xF6B2;" : "=r"(pair) : "r"(first), "r"(second));
  return pair;
}

/// The packed octet of up to 4 bits a code: codes of even and odd elements are joined in the two halves of a word by
/// multiplications, which have arithmetic units to themselves, and then the halves.
template <int kBits>
__device__ uint32_t pack_codes(const NoisyOctet& noisy) {
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
  PackedOctet packed{};
  if constexpr (kBits <= 4) {
    packed.word[0] = pack_codes<kBits>(noisy);
  } else {
#pragma unroll
    for (int k = 0; k < kOctet; ++k) {
      place(packed.word, code_at(noisy.position[k], kBits), k * kBits, kBits);
    }
  }
  return packed;
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

/// Writes four neighbouring octets: kBits aligned words.
template <int kBits>
__device__ void store_octets(const PackedOctet (&octets)[kLaneOctets], uint8_t* codes) {
  uint32_t words[kBits] = {};
#pragma unroll
  for (int i = 0; i < kLaneOctets; ++i) {
#pragma unroll
    for (int w = 0; w < packed_words(kBits); ++w) {
      const int width = packed_words(kBits) == 1 ? 8 * kBits : w == 0 ? 32 : 8 * kBits - 32;
      place(words, octets[i].word[w], 8 * kBits * i + 32 * w, width);
    }
  }
  auto* target = reinterpret_cast<uint32_t*>(codes);
  constexpr int kVector = kBits % 4 == 0 ? 4 : kBits % 2 == 0 ? 2 : 1;
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

/// A whole tile of 1024 elements. `with_width(body)` calls body.operator()<bits>(): where the bit width is known only
/// when the kernel runs, just the few instructions that depend on it exist for all of them.
template <bool kStochastic, int kLanesLog2, class Element, class WithWidth>
__device__ void quantize_tile(const Segment<Element>& segment, int64_t tile, const TilePlan& plan, int bits,
                              const RandomState& random, WithWidth&& with_width) {
  const TilePart<kLanesLog2> part(plan.lanes_log2);
  Octet<Element> octets[kLaneOctets];
  part.load(segment.elements + tile * kTileElements, octets);
  const Range range = Octet<Element>::range(octets, part.lanes());
  const bool all_finite = is_finite(range.smallest) && is_finite(range.largest);
  const GroupParameters parameters = choose_grid(range.smallest, range.largest, all_finite, bits, kTypeOf<Element>);
  if (part.member() == 0) {
    segment.parameters[part.group_of_segment(tile)] = parameters;
  }
  const EncodingGrid grid = encoding_grid(parameters, bits, kTypeOf<Element>);

  PackedOctet packed[kLaneOctets];
  const uint64_t counter = segment.first_octet + static_cast<uint64_t>(tile) * kTileOctets + part.octet(0);
#pragma unroll
  for (int c = 0; c < kLaneOctets; ++c) {
    const PhiloxBlock block = noise_block<kStochastic>(random, counter + c * part.lanes(), bits);
    const NoisyOctet noisy = add_noise(octets[c], grid, block);
    with_width([&]<int kBits>() { packed[c] = pack<kBits>(noisy); });
  }
  if (is_nan(grid.minimum)) {
#pragma unroll
    for (int c = 0; c < kLaneOctets; ++c) {
      packed[c] = {};
    }
  }
  const int quarter = part.member() % 4;
  const int64_t octet = tile * kTileOctets + part.octet(quarter) - quarter;
  with_width([&]<int kBits>() {
    transpose<kBits>(packed, lane_index());
    store_octets<kBits>(packed, segment.codes + octet * kBits);
  });
}

/// Any group, by some neighbouring lanes; all lanes of the warp take part, perhaps with a group beyond the last.
template <class Element>
__device__ void quantize_group(const Segment<Element>& segment, int64_t group, int lanes, int bits,
                               const RandomState& random, bool stochastic) {
  const int member = lane_index() % lanes;
  const int64_t begin = group * segment.group_size;
  const int64_t end = min(begin + segment.group_size, segment.count);
  const Range range = range_of_run(segment.elements, begin, end, lanes);
  const bool all_finite = is_finite(range.smallest) && is_finite(range.largest);
  const GroupParameters parameters = choose_grid(range.smallest, range.largest, all_finite, bits, kTypeOf<Element>);
  if (member == 0 && begin < end) {
    segment.parameters[group] = parameters;
  }
  const EncodingGrid grid = encoding_grid(parameters, bits, kTypeOf<Element>);
  const OctetSteps steps(bits);
  for (int64_t octet = begin / kOctet + member; octet * kOctet < end; octet += lanes) {
    const AnyOctet<Element> values(segment.elements, octet, end);
    const PhiloxBlock block = random.block(segment.first_octet + static_cast<uint64_t>(octet));
    uint64_t codes = 0;
#pragma unroll
    for (int k = 0; k < kOctet; ++k) {
      const uint32_t noise = stochastic ? random16(block, k) >> (16 - fraction_bits(bits)) : half_step(bits);
      const uint64_t code = k < values.count() ? encode(values[k], grid, noise, bits) : 0;
      codes |= code << (8 * k);
    }
    const uint64_t packed = is_nan(grid.minimum) ? 0 : pack_octet(codes, steps);
    for (int i = 0; i < bits; ++i) {
      segment.codes[octet * bits + i] = static_cast<uint8_t>(packed >> (8 * i));
    }
  }
  if (begin < end && end == segment.count) {
    for (int64_t i = code_bytes(end, bits) + member; i < segment.code_end; i += lanes) {
      segment.codes[i] = 0;
    }
  }
}

/// The bytes between the parameters of all groups and the codes.
struct Padding {
  uint8_t* begin;
  int bytes;

  Padding(uint8_t* packed, int64_t groups)
      : begin(packed + groups * static_cast<int64_t>(sizeof(GroupParameters))),
        bytes(static_cast<int>(packed + codes_offset(groups) - begin)) {}

  __device__ void zero() const {
    if (thread_index() < bytes) {
      begin[thread_index()] = 0;
    }
  }
};

/// The segment at the beginning of a packed activation with so many groups in all.
template <class Element>
Segment<Element> first_segment(const QuantizeArguments& arguments, int64_t all_groups) {
  return {static_cast<const Element*>(arguments.elements),
          arguments.count,
          arguments.group_size,
          reinterpret_cast<GroupParameters*>(arguments.packed),
          arguments.packed + codes_offset(all_groups),
          0,
          0};
}

}  // namespace actnn::cuda
