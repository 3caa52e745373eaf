#pragma once

#include <cstdint>

#include "actnn/core/host_device.h"

/// \file
/// Philox4x32, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
/// with 7 rounds: the fewest that pass BigCrush (section 5.1 there). Equal to Random123's `philox4x32_R<7>`; with 10
/// rounds also to `at::Philox4_32(seed, subsequence = counter_high, offset = counter_low)`.

namespace actnn {

inline constexpr int kPhiloxRounds = 7;
inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53;
inline constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9;
inline constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85;

/// One output of the generator: 128 bits, least significant word first.
struct PhiloxBlock {
  uint32_t word[4];
};

/// All 64 bits of a product. Spelled as its halves for GPUs, where the compiler then finds the one instruction for both
/// (of the 64-bit product it makes that instruction and an addition of zero).
ACTNN_HOST_DEVICE constexpr uint64_t wide_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return (static_cast<uint64_t>(__umulhi(a, b)) << 32) | (a * b);
#else
  return static_cast<uint64_t>(a) * b;
#endif
}

/// The blocks at 128-bit counters `counter_high : counter_low[i]` under the 64-bit `key`, which share the round keys.
template <int kRounds = kPhiloxRounds, int kCount>
ACTNN_HOST_DEVICE constexpr void philox4x32(uint64_t key, const uint64_t (&counter_low)[kCount], uint64_t counter_high,
                                            PhiloxBlock (&blocks)[kCount]) {
  auto key0 = static_cast<uint32_t>(key);
  auto key1 = static_cast<uint32_t>(key >> 32);
  for (int i = 0; i < kCount; ++i) {
    blocks[i] = {{static_cast<uint32_t>(counter_low[i]), static_cast<uint32_t>(counter_low[i] >> 32),
                  static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32)}};
  }
  for (int round = 0; round < kRounds; ++round) {
    for (PhiloxBlock& block : blocks) {
      auto& [x0, x1, x2, x3] = block.word;
      const uint64_t product0 = wide_product(kPhiloxMultiplier0, x0);
      const uint64_t product1 = wide_product(kPhiloxMultiplier1, x2);
      x0 = static_cast<uint32_t>(product1 >> 32) ^ x1 ^ key0;
      x1 = static_cast<uint32_t>(product1);
      x2 = static_cast<uint32_t>(product0 >> 32) ^ x3 ^ key1;
      x3 = static_cast<uint32_t>(product0);
    }
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

/// The block at 128-bit counter `counter_high : counter_low` under the 64-bit `key`. A pure function: no state.
template <int kRounds = kPhiloxRounds>
ACTNN_HOST_DEVICE constexpr PhiloxBlock philox4x32(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  const uint64_t counters[1] = {counter_low};
  PhiloxBlock blocks[1] = {};
  philox4x32<kRounds>(key, counters, counter_high, blocks);
  return blocks[0];
}

/// The k-th of a block's eight 16-bit numbers, k in [0, 8): word k / 2, low half first.
ACTNN_HOST_DEVICE constexpr uint32_t random16(const PhiloxBlock& block, int k) {
  return (block.word[k / 2] >> (16 * (k % 2))) & 0xFFFF;
}

/// Eight random bytes, for the elements of an octet (core/bit_packing.h): byte k % 4 of word k / 4, lowest first, is
/// that of element k.
struct OctetNoise {
  uint32_t word[2];

  ACTNN_HOST_DEVICE constexpr uint32_t operator[](int k) const { return (word[k / 4] >> (8 * (k % 4))) & 0xFF; }
};

/// The half of a block that belongs to the even (0) or odd (1) one of two octets.
ACTNN_HOST_DEVICE constexpr OctetNoise octet_noise(const PhiloxBlock& block, int half) {
  return {{block.word[2 * half], block.word[2 * half + 1]}};
}

/// What one call of a randomized operation draws from: the block for its i-th counter value is
/// `philox4x32(seed, i, offset)`. A call uses one offset; the next call uses the next.
struct RandomState {
  uint64_t seed = 0;
  uint64_t offset = 0;

  ACTNN_HOST_DEVICE constexpr PhiloxBlock block(uint64_t counter) const { return philox4x32(seed, counter, offset); }
  /// The blocks for neighbouring counter values.
  template <int kCount>
  ACTNN_HOST_DEVICE constexpr void blocks(uint64_t first_counter, PhiloxBlock (&of_counters)[kCount]) const {
    uint64_t counters[kCount] = {};
    for (int i = 0; i < kCount; ++i) {
      counters[i] = first_counter + static_cast<uint64_t>(i);
    }
    philox4x32(seed, counters, offset, of_counters);
  }
  /// The noise of an octet: two neighbouring ones share a block.
  ACTNN_HOST_DEVICE constexpr OctetNoise octet(uint64_t number) const {
    return octet_noise(block(number / 2), static_cast<int>(number % 2));
  }
};

}  // namespace actnn
