#pragma once

#include <cstdint>

#include "actnn/core/columns.h"
#include "src/cuda/column_stage.cuh"
#include "src/cuda/column_tiles.cuh"
#include "src/cuda/launch.cuh"

/// \file
/// Codes of a strip's tile in shared memory, on their way from threads to a packed tensor. Threads have one octet of
/// several channels each; what is written is a *word* of 4 octets (core/columns.h), whose bytes and place are whole
/// 32-bit numbers for all bit widths. Between them, each octet has a *slot* of its own: 8 bytes, 4 for codes of up to 4
/// bits, 1 for those of 1 bit and for masks:
///
///     column of the strip, and 16 bytes, which spread columns over the banks
///       channel: 32 slots

namespace actnn::cuda {

inline constexpr int kWordsOfTile = kTileOctetRows / static_cast<int>(kWordOctets);

class CodeSlots {
 public:
  ACTNN_HOST_DEVICE static int bytes(const ColumnTiles& tiles, int bits) {
    return tiles.width * column_bytes(tiles.thread_channels, slot_log2(bits));
  }

  /// `memory` begins at a multiple of 16 bytes. Threads of `Place` store octets of so many bits.
  template <class Place>
  __device__ CodeSlots(uint8_t* memory, const Place& place, int bits)
      : memory_(memory),
        own_(memory + place.column() * column_bytes(Place::kChannels, slot_log2(bits)) +
             (place.octet_row() << slot_log2(bits))),
        bits_(bits) {}

  /// Stores the octet of a thread's channel k. The halves' bits above 4 * bits are zero.
  __device__ void store_octet(int k, const CodeHalves& codes) const {
    uint8_t* const to = own_ + (k * kTileOctetRows << slot_log2(bits_));
    const uint32_t low = codes.half[0] | __funnelshift_lc(0, codes.half[1], 4 * bits_);
    if (bits_ > 4) {
      *reinterpret_cast<uint2*>(to) = make_uint2(low, codes.half[1] >> (32 - 4 * bits_));
    } else if (bits_ > 1) {
      *reinterpret_cast<uint32_t*>(to) = low;
    } else {
      *to = static_cast<uint8_t>(low);
    }
  }
  /// ... of a mask.
  __device__ void store_mask(int k, uint8_t bits) const { own_[k * kTileOctetRows] = bits; }

  /// Writes the word of a channel of the strip, which is the `number`-th of its codes in global memory.
  template <int kChannels>
  __device__ void write_word(int channel, int word, int64_t number, uint8_t* codes) const {
    with_bits(bits_, [&]<int bits>() { write_word_of<kChannels, bits>(channel, word, number, codes); });
  }
  /// ... of a mask.
  template <int kChannels>
  __device__ void write_mask_word(int channel, int word, int64_t number, uint8_t* mask) const {
    write_word_of<kChannels, 1>(channel, word, number, mask);
  }

 private:
  ACTNN_HOST_DEVICE static constexpr int slot_log2(int bits) { return bits > 4 ? 3 : bits > 1 ? 2 : 0; }
  ACTNN_HOST_DEVICE static constexpr int column_bytes(int thread_channels, int slot_log2) {
    return (thread_channels * kTileOctetRows << slot_log2) + kStagePadding;
  }

  template <int kChannels, int bits>
  __device__ void write_word_of(int channel, int word, int64_t number, uint8_t* codes) const {
    constexpr int kSlotLog2 = slot_log2(bits);
    const uint8_t* const from =
        memory_ + channel / kChannels * column_bytes(kChannels, kSlotLog2) +
        (((channel % kChannels) * kTileOctetRows + word * static_cast<int>(kWordOctets)) << kSlotLog2);
    uint32_t packed[bits] = {};
    if constexpr (bits == 1) {
      packed[0] = *reinterpret_cast<const uint32_t*>(from);
    } else {
      constexpr int kSlotWords = (1 << kSlotLog2) / 4;
      Vector slots[kSlotWords];
#pragma unroll
      for (int i = 0; i < kSlotWords; ++i) {
        slots[i] = as_vector(reinterpret_cast<const uint4*>(from)[i]);
      }
#pragma unroll
      for (int octet = 0; octet < static_cast<int>(kWordOctets); ++octet) {
#pragma unroll
        for (int part = 0; part < kSlotWords; ++part) {
          const uint32_t of_slot = slots[octet * kSlotWords / 4].word[octet * kSlotWords % 4 + part];
          const int bit = octet * 8 * bits + 32 * part;
          packed[bit / 32] |= of_slot << (bit % 32);
          if (bit % 32 != 0 && bit / 32 + 1 < bits) {
            packed[bit / 32 + 1] |= of_slot >> (32 - bit % 32);
          }
        }
      }
    }
    auto* const to = reinterpret_cast<uint32_t*>(codes) + number * bits;
    constexpr int kUnit = bits % 4 == 0 ? 4 : bits % 2 == 0 ? 2 : 1;
#pragma unroll
    for (int i = 0; i < bits; i += kUnit) {
      if constexpr (kUnit == 4) {
        __stcs(reinterpret_cast<uint4*>(to + i), make_uint4(packed[i], packed[i + 1], packed[i + 2], packed[i + 3]));
      } else if constexpr (kUnit == 2) {
        __stcs(reinterpret_cast<uint2*>(to + i), make_uint2(packed[i], packed[i + 1]));
      } else {
        __stcs(to + i, packed[i]);
      }
    }
  }

  uint8_t* memory_;
  uint8_t* own_;
  int bits_;
};

/// Calls `body(channel of the strip, word of the tile, number)` for this thread's share of the words that a tile has,
/// where `number` counts the words of a packed tensor's codes.
template <class Body>
__device__ void for_each_word(const ColumnTiles& tiles, const ColumnLayout<int64_t>& layout, int64_t tile,
                              Body&& body) {
  const int word = static_cast<int>(threadIdx.x) % kWordsOfTile;
  const int group_words_log2 = group_rows_log2(layout.group_rows) - 5;
  const int64_t block = tile * (kWordsOfTile >> group_words_log2) + (word >> group_words_log2);
  if (tile * kTileRows + word * kWordRows >= layout.rows) {
    return;
  }
  const int64_t block_words = layout.block_octets(block) / kWordOctets;
  const int64_t first = (block << group_words_log2) * layout.channels + (word & ((1 << group_words_log2) - 1));
  for (int c = static_cast<int>(threadIdx.x) / kWordsOfTile; c < tiles.strip_channels();
       c += static_cast<int>(blockDim.x) / kWordsOfTile) {
    const int64_t channel = tiles.first_channel() + c;
    if (channel < layout.channels) {
      body(c, word, first + channel * block_words);
    }
  }
}

}  // namespace actnn::cuda
