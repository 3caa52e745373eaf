#pragma once

#include <cuda_pipeline.h>

#include <cstdint>

#include "actnn/core/columns.h"
#include "src/cuda/warp_columns.cuh"

/// \file
/// Packed codes of a warp's tile in shared memory, on their way to its threads. In global memory the codes of a channel
/// follow each other, and those of neighbouring channels of a group do; threads have the octets of several channels. A
/// *stage* holds a tile of codes of one width, or of a mask:
///
///     group of rows
///       column of the strip, and 16 bytes, which spread columns over the banks
///         channel: octets of the group, of `width` bytes each

namespace actnn::cuda {

inline constexpr int kStagePadding = 16;

/// Eight codes: those of rows 0-3 and of rows 4-7, each in the lowest 4 * bits bits, row j at j * bits.
struct CodeHalves {
  uint32_t half[2];
};

/// The numbers of a stage, found at launch.
struct StageShape {
  int width;
  int group_octets_log2;
  int channel;                 ///< bytes from a channel of a group to the next: a multiple of 8
  int column;                  ///< ... from a column of a group to the next
  int group;                   ///< ... from a group to the next
  uint32_t columns_per_chunk;  ///< the inverse of a column's 16-byte chunks, times 2^16, rounded up
  int64_t packed_group;        ///< bytes from a group to the next in global memory
  int64_t packed_tile;

  StageShape(const WarpColumns& columns, int64_t group_rows, int code_width)
      : width(code_width),
        group_octets_log2(group_rows_log2(group_rows) - 3),
        channel(code_width << group_octets_log2),
        column(kPackedChannels * channel + kStagePadding),
        group(column << columns.width_log2),
        columns_per_chunk(channel == 0 ? 0 : ((kStagePadding << 16) - 1) / (kPackedChannels * channel) + 1),
        packed_group(columns.channels * channel),
        packed_tile(packed_group * groups()) {}

  ACTNN_HOST_DEVICE int groups() const { return kTileOctetRows >> group_octets_log2; }
  /// Bytes of a stage; loads may read 8 bytes beyond the last octet.
  int bytes() const { return groups() * group; }
  /// Where the octet of the first channel of a column is.
  __device__ int octet(int in_column, int octet_row) const {
    return in_column * column + (octet_row >> group_octets_log2) * group +
           (octet_row & ((1 << group_octets_log2) - 1)) * width;
  }
};

/// A warp's channels, in shared memory: registers that are needed once a tile would be spilled, and a spilled register
/// comes back from behind the cache that the tiles go through.
struct alignas(16) StripChannels {
  int first;
  int count;       ///< that exist
  uint32_t sided;  ///< a bit of each: whether its grids are those of sides
};

/// Starts copying tiles into a stage, by all threads of a warp; `cp.async` groups are the caller's.
template <class Place>
class StageFetch {
 public:
  static constexpr int kChannels = Place::kChannels;

  /// `codes`: of the matrix, in global memory; `memory`: the stage, at a multiple of 16 bytes; `strip`: its channels.
  __device__ StageFetch(int64_t rows, const StageShape& shape, const StripChannels& strip, const uint8_t* codes,
                        uint8_t* memory)
      : rows_(rows), shape_(shape), strip_(strip), codes_(codes), memory_(memory) {}

  __device__ void fetch(int tile) const {
    if (Place::kLoadsVectors && (tile + int64_t{1}) * kTileRows <= rows_) {
      fetch_runs(tile);
    } else {
      fetch_channels(tile);
    }
  }

 private:
  /// The channels of a strip follow each other in each group. With vectors, everything is at multiples of 16 bytes.
  __device__ void fetch_runs(int tile) const {
    constexpr int kChunk = sizeof(uint4);
    const int chunks = strip_.count * shape_.channel / kChunk;
    const uint8_t* from = codes_ + tile * shape_.packed_tile + int64_t{strip_.first} * shape_.channel;
    uint8_t* to = memory_;
#pragma unroll 1
    for (int group = 0; group < shape_.groups(); ++group, from += shape_.packed_group, to += shape_.group) {
#pragma unroll 2
      for (int chunk = lane_index(); chunk < chunks; chunk += kWarp) {
        const int column = static_cast<int>(static_cast<uint32_t>(chunk) * shape_.columns_per_chunk >> 16);
        __pipeline_memcpy_async(to + (chunk * kChunk + column * kStagePadding), from + chunk * kChunk, kChunk);
      }
    }
  }

  /// Any tile, word by word: a channel a thread.
  __device__ void fetch_channels(int tile) const {
    constexpr int kWord = sizeof(uint32_t);
    const int c = lane_index();
    if (c >= strip_.count) {
      return;
    }
    const int octets = 1 << shape_.group_octets_log2;
#pragma unroll 1
    for (int group = 0; group < shape_.groups(); ++group) {
      const int64_t rows = rows_ - (int64_t{tile} * kTileRows + group * octets * kRows);
      if (rows <= 0) {
        return;
      }
      const auto words = static_cast<int>(min(ceil_div(rows, kWordRows), int64_t{octets / 4}));
      const int bytes = words * static_cast<int>(kWordOctets) * shape_.width;
      const uint8_t* const from =
          codes_ + tile * shape_.packed_tile + group * shape_.packed_group + int64_t{strip_.first + c} * bytes;
      uint8_t* const to =
          memory_ + group * shape_.group + c / kChannels * shape_.column + c % kChannels * shape_.channel;
#pragma unroll 1
      for (int at = 0; at < bytes; at += kWord) {
        __pipeline_memcpy_async(to + at, from + at, kWord);
      }
    }
  }

  int64_t rows_;
  const StageShape& shape_;
  const StripChannels& strip_;
  const uint8_t* codes_;
  uint8_t* memory_;
};

}  // namespace actnn::cuda
