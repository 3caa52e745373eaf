#pragma once

#include <cstdint>

#include "actnn/core/columns.h"
#include "src/cuda/column_stage.cuh"
#include "src/cuda/column_tiles.cuh"
#include "src/cuda/launch.cuh"

/// \file
/// Codes of a strip's tile in shared memory, on their way from threads to a packed tensor. Threads have one octet of
/// several channels each; what is written is a *word* of 4 octets (core/columns.h), whose bytes and place are whole
/// 32-bit numbers for all bit widths. Between them, each octet has a *slot* of its own: two halves of 4 bytes, of 2
/// bytes for codes of up to 4 bits, or 1 byte for a mask:
///
///     column of the strip, and 16 bytes, which spread columns over the banks
///       channel: 32 slots

namespace actnn::cuda {

inline constexpr int kWordsOfTile = kTileOctetRows / static_cast<int>(kWordOctets);

class Slots {
 public:
  /// Multiples of 16.
  ACTNN_HOST_DEVICE static int bytes_of_codes(const ColumnTiles& tiles, int bits) {
    return tiles.width * column_bytes(tiles.thread_channels, code_slot_log2(bits));
  }
  static int bytes_of_mask(const ColumnTiles& tiles) { return tiles.width * column_bytes(tiles.thread_channels, 0); }

 protected:
  /// `memory` begins at a multiple of 16 bytes.
  template <class Place>
  __device__ Slots(uint8_t* memory, const Place& place, int slot_log2)
      : memory_(memory),
        own_(memory + place.column() * column_bytes(Place::kChannels, slot_log2) + (place.octet_row() << slot_log2)) {}

  ACTNN_HOST_DEVICE static constexpr int code_slot_log2(int bits) { return bits > 4 ? 3 : 2; }

  /// The thread's slot of its channel k.
  __device__ uint8_t* slot(int k, int slot_log2) const { return own_ + (k * kTileOctetRows << slot_log2); }

  /// The first of a word's slots.
  template <int kChannels>
  __device__ const uint8_t* word_slots(int channel, int word, int slot_log2) const {
    const auto c = static_cast<uint32_t>(channel);
    const uint32_t in_column = (c % kChannels) * kTileOctetRows + static_cast<uint32_t>(word * kWordOctets);
    return memory_ + c / kChannels * column_bytes(kChannels, slot_log2) + (in_column << slot_log2);
  }

 private:
  ACTNN_HOST_DEVICE static constexpr int column_bytes(int thread_channels, int slot_log2) {
    return (thread_channels * kTileOctetRows << slot_log2) + kStagePadding;
  }

  uint8_t* memory_;
  uint8_t* own_;
};

/// The place of a word.
struct WordPlace {
  int channel;  ///< of the strip
  int word;     ///< of the tile
  int rows;     ///< that exist
  uint32_t number;

  /// Ones for the codes of the rows that exist: word i of `bits` of them. The others are stored as zeros.
  __device__ uint32_t existing(int bits, int i) const {
    const int width = rows * bits - 32 * i;
    return width <= 0 ? 0 : width >= 32 ? ~0U : (1U << width) - 1;
  }
};

/// Codes of so many bits.
class CodeSlots : Slots {
 public:
  template <class Place>
  __device__ CodeSlots(uint8_t* memory, const Place& place, int bits)
      : Slots(memory, place, code_slot_log2(bits)), bits_(bits) {}

  /// Stores the octet of a thread's channel k.
  __device__ void store_octet(int k, const CodeHalves& codes) const {
    if (bits_ > 4) {
      *reinterpret_cast<uint2*>(slot(k, 3)) = make_uint2(codes.half[0], codes.half[1]);
    } else {
      *reinterpret_cast<uint32_t*>(slot(k, 2)) = __byte_perm(codes.half[0], codes.half[1], 0x5410);
    }
  }

  /// Writes all words of a tile, whose codes are of so many bits. `codes`: in global memory.
  template <int kChannels, class Words>
  __device__ void write(const Words& words, uint8_t* codes) const {
    with_bits(bits_, [&]<int bits>() {
      words.for_each([&](const WordPlace& place) { write_word<kChannels, bits>(place, codes); });
    });
  }

 private:
  template <int kChannels, int bits>
  __device__ void write_word(const WordPlace& place, uint8_t* codes) const {
    constexpr int kSlotLog2 = code_slot_log2(bits);
    constexpr int kHalfBits = 4 * bits;
    constexpr int kHalves = 2 * static_cast<int>(kWordOctets);
    constexpr int kLoads = (static_cast<int>(kWordOctets) << kSlotLog2) / static_cast<int>(sizeof(uint4));
    const auto* const from =
        reinterpret_cast<const uint4*>(this->template word_slots<kChannels>(place.channel, place.word, kSlotLog2));
    Vector slots[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      slots[i] = as_vector(from[i]);
    }
    uint32_t packed[bits] = {};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const int word = bits > 4 ? h : h / 2;
      const uint32_t stored = slots[word / 4].word[word % 4];
      const uint32_t half = bits > 4 ? stored : h % 2 == 0 ? stored & 0xFFFFU : stored >> 16;
      const int bit = h * kHalfBits;
      packed[bit / 32] |= half << (bit % 32);
      if (bit % 32 + kHalfBits > 32) {
        packed[bit / 32 + 1] |= half >> (32 - bit % 32);
      }
    }
    if (place.rows < static_cast<int>(kWordRows)) {
#pragma unroll
      for (int i = 0; i < bits; ++i) {
        packed[i] &= place.existing(bits, i);
      }
    }
    auto* const to = reinterpret_cast<uint32_t*>(codes) + uint64_t{place.number} * bits;
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

  int bits_;
};

/// Bits of a mask.
class MaskSlots : Slots {
 public:
  template <class Place>
  __device__ MaskSlots(uint8_t* memory, const Place& place) : Slots(memory, place, 0) {}

  __device__ void store_octet(int k, uint8_t bits) const { *slot(k, 0) = bits; }

  /// As of codes.
  template <int kChannels, class Words>
  __device__ void write(const Words& words, uint8_t* mask) const {
    words.for_each([&](const WordPlace& place) {
      const uint8_t* const from = this->template word_slots<kChannels>(place.channel, place.word, 0);
      __stcs(reinterpret_cast<uint32_t*>(mask) + place.number,
             *reinterpret_cast<const uint32_t*>(from) & place.existing(1, 0));
    });
  }
};

/// A thread's share of the words of a tile: one word of several channels. Words are counted in 32 bits.
class TileWords {
 public:
  __device__ TileWords(const ColumnTiles& tiles, int64_t group_rows, int64_t tile)
      : word_(static_cast<int>(threadIdx.x) % kWordsOfTile) {
    const int group_words = kWordsOfTile >> (8 - group_rows_log2(group_rows));
    const int in_group = word_ & (group_words - 1);
    const int rows_of_tile = static_cast<int>(min(tiles.rows - tile * kTileRows, int64_t{kTileRows}));
    const int rows_of_group = rows_of_tile - (word_ - in_group) * static_cast<int>(kWordRows);
    rows_ = min(rows_of_tile - word_ * static_cast<int>(kWordRows), static_cast<int>(kWordRows));
    channel_words_ = static_cast<uint32_t>(min((rows_of_group + static_cast<int>(kWordRows) - 1) >> 5, group_words));
    first_ = (static_cast<uint32_t>(tile) * kWordsOfTile + static_cast<uint32_t>(word_ - in_group)) *
                 static_cast<uint32_t>(tiles.channels) +
             static_cast<uint32_t>(tiles.first_channel()) * channel_words_ + static_cast<uint32_t>(in_group);
    channels_ = static_cast<int>(min(tiles.channels - tiles.first_channel(), int64_t{tiles.strip_channels()}));
  }

  /// Calls `body(place)`.
  template <class Body>
  __device__ void for_each(Body&& body) const {
    if (rows_ <= 0) {
      return;
    }
    for (int c = static_cast<int>(threadIdx.x) / kWordsOfTile; c < channels_;
         c += static_cast<int>(blockDim.x) / kWordsOfTile) {
      body(WordPlace{c, word_, rows_, first_ + static_cast<uint32_t>(c) * channel_words_});
    }
  }

 private:
  int word_;
  int rows_;
  int channels_;
  uint32_t channel_words_;  ///< of a channel of the group
  uint32_t first_;          ///< of the strip's first channel
};

}  // namespace actnn::cuda
