#pragma once

#include <cuda_pipeline.h>

#include <cstdint>

#include "actnn/core/columns.h"
#include "src/cuda/column_tiles.cuh"

/// \file
/// The codes of a strip's tile in shared memory. In global memory those of a channel follow each other; threads have
/// the octets of several channels. A *stage* holds one tile of codes of one width, or of a mask:
///
///     column of the strip (thread channels x 32 octets, and 16 bytes, which spread columns over the banks)
///       channel: 32 octets of `width` bytes

namespace actnn::cuda {

inline constexpr int kStagePadding = 16;

/// Eight codes: those of rows 0-3 and of rows 4-7, each in 4 * bits bits, row j at j * bits.
struct CodeHalves {
  uint32_t half[2];
};

class CodeStage {
 public:
  /// Bytes for a strip; loads may read 8 bytes beyond the last octet.
  ACTNN_HOST_DEVICE static int bytes(const ColumnTiles& tiles, int width) {
    return tiles.width * column_bytes(tiles.thread_channels, width);
  }

  /// `memory` begins at a multiple of 16 bytes. `codes`: in global memory, of `width` bits.
  __device__ CodeStage(uint8_t* memory, const ColumnLayout<int64_t>& layout, const ColumnTiles& tiles, int width)
      : memory_(memory), layout_(layout), tiles_(tiles), width_(width) {}

  __device__ int width() const { return width_; }

  /// Where the octet of a thread's channel k is, in bytes from the stage's begin.
  template <class Place>
  __device__ int octet(const Place& place, int k) const {
    return place.column() * column_bytes(Place::kChannels, width_) + (k * kTileOctetRows + place.octet_row()) * width_;
  }

  /// Reads the octet that begins at `octet`; of the words before and behind it, too.
  __device__ CodeHalves load_octet(int octet) const {
    const int shift = octet % 4 * 8;
    const auto* words = reinterpret_cast<const uint32_t*>(memory_) + octet / 4;
    const uint32_t low = __funnelshift_r(words[0], words[1], shift);
    const uint32_t high = __funnelshift_r(words[1], words[2], shift);
    return {{low, __funnelshift_rc(low, high, 4 * width_)}};
  }
  __device__ uint32_t load_mask(int octet) const { return memory_[octet]; }

  /// Writes an octet of such halves, whose bits above 4 * width are zero.
  __device__ void store_octet(const CodeHalves& codes, int octet) const {
    const uint32_t low = codes.half[0] | __funnelshift_lc(0, codes.half[1], 4 * width_);
    const uint32_t high = codes.half[1] >> (32 - 4 * width_);
    uint8_t* const to = memory_ + octet;
    if (width_ % 4 == 0) {
      reinterpret_cast<uint32_t*>(to)[0] = low;
      if (width_ == 8) {
        reinterpret_cast<uint32_t*>(to)[1] = high;
      }
    } else if (width_ % 2 == 0) {
      auto* const halves = reinterpret_cast<uint16_t*>(to);
      halves[0] = static_cast<uint16_t>(low);
      if (width_ == 6) {
        halves[1] = static_cast<uint16_t>(low >> 16);
        halves[2] = static_cast<uint16_t>(high);
      }
    } else {
      to[0] = static_cast<uint8_t>(low);
      if (width_ > 1) {
        to[1] = static_cast<uint8_t>(low >> 8);
        to[2] = static_cast<uint8_t>(low >> 16);
      }
      if (width_ > 3) {
        to[3] = static_cast<uint8_t>(low >> 24);
        to[4] = static_cast<uint8_t>(high);
      }
      if (width_ > 5) {
        to[5] = static_cast<uint8_t>(high >> 8);
        to[6] = static_cast<uint8_t>(high >> 16);
      }
    }
  }
  __device__ void store_mask(uint8_t bits, int octet) const { memory_[octet] = bits; }

  /// Starts copying a tile into the stage, by all threads; `cp.async` groups are the caller's.
  template <class Place>
  __device__ void fetch(const Place& place, int64_t tile, const uint8_t* codes) const {
    for_each_chunk<Place::kChannels>(tile, codes, [&]<class Unit>(Unit /*tag*/, int64_t global, int shared) {
      __pipeline_memcpy_async(memory_ + shared, codes + global, sizeof(Unit));
    });
  }

  /// Writes the stage's tile to global memory, by all threads.
  template <class Place>
  __device__ void flush(const Place& place, int64_t tile, uint8_t* codes) const {
    for_each_chunk<Place::kChannels>(tile, codes, [&]<class Unit>(Unit /*tag*/, int64_t global, int shared) {
      __stcs(reinterpret_cast<Unit*>(codes + global), *reinterpret_cast<const Unit*>(memory_ + shared));
    });
  }

 private:
  ACTNN_HOST_DEVICE static constexpr int column_bytes(int thread_channels, int width) {
    return thread_channels * kTileOctetRows * width + kStagePadding;
  }

  /// Calls `body(unit, offset in global memory, offset in the stage)` for this thread's pieces of a tile, which are as
  /// large as alignment allows. As many threads as a column has for each channel share the channel.
  template <int kChannels, class Body>
  __device__ void for_each_chunk(int64_t tile, const uint8_t* codes, Body&& body) const {
    constexpr int kSharers = kTileOctetRows / kChannels;
    const int channel = static_cast<int>(threadIdx.x) / kSharers;
    const int64_t global_channel = tiles_.first_channel() + channel;
    if (global_channel >= tiles_.channels) {
      return;
    }
    const int begin =
        channel / kChannels * column_bytes(kChannels, width_) + channel % kChannels * kTileOctetRows * width_;
    const int group_bytes = static_cast<int>(layout_.group_rows) / kRows * width_;
    const bool aligned = reinterpret_cast<uintptr_t>(codes) % 16 == 0 && group_bytes % 16 == 0;
    const auto copy = [&]<class Unit>(Unit unit, int64_t global, int shared, int bytes) {
      for (int at = static_cast<int>(threadIdx.x) % kSharers * static_cast<int>(sizeof(Unit)); at < bytes;
           at += kSharers * static_cast<int>(sizeof(Unit))) {
        body(unit, global + at, shared + at);
      }
    };
    const int groups = kTileRows >> group_rows_log2(layout_.group_rows);
    for (int group = 0; group < groups; ++group) {
      const int64_t block = tile * groups + group;
      if (block * layout_.group_rows >= layout_.rows) {
        break;
      }
      const int bytes = static_cast<int>(layout_.block_octets(block)) * width_;
      const int64_t global = layout_.group_offset(block, global_channel, width_);
      if (aligned && bytes % 16 == 0) {
        copy(uint4{}, global, begin + group * group_bytes, bytes);
      } else {
        copy(uint32_t{}, global, begin + group * group_bytes, bytes);
      }
    }
  }

  uint8_t* memory_;
  const ColumnLayout<int64_t>& layout_;
  const ColumnTiles& tiles_;
  int width_;
};

}  // namespace actnn::cuda
