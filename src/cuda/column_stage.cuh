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

  StageShape(const WarpColumns& columns, int64_t group_rows, int code_width)
      : width(code_width),
        group_octets_log2(group_rows_log2(group_rows) - 3),
        channel(code_width << group_octets_log2),
        column(kPackedChannels * channel + kStagePadding),
        group(column << columns.width_log2),
        columns_per_chunk(channel == 0 ? 0 : ((kStagePadding << 16) - 1) / (kPackedChannels * channel) + 1) {}

  ACTNN_HOST_DEVICE int groups() const { return kTileOctetRows >> group_octets_log2; }
  /// Bytes of a stage; loads may read 8 bytes beyond the last octet.
  int bytes() const { return groups() * group; }
  /// Where the octet of the first channel of a column is.
  __device__ int octet(int in_column, int octet_row) const {
    return in_column * column + (octet_row >> group_octets_log2) * group +
           (octet_row & ((1 << group_octets_log2) - 1)) * width;
  }
};

/// Starts copying a tile into a stage, by all threads of a warp; `cp.async` groups are the caller's. `memory`: the
/// stage, at a multiple of 16 bytes; `codes`: in global memory.
template <class Place>
class StageFetch {
 public:
  static constexpr int kChannels = Place::kChannels;

  __device__ StageFetch(const ColumnLayout<int64_t>& layout, const WarpColumns& columns, const StageShape& shape)
      : layout_(layout), columns_(columns), shape_(shape) {}

  __device__ void fetch(int64_t tile, const uint8_t* codes, uint8_t* memory) const {
    if (Place::kLoadsVectors && (tile + 1) * kTileRows <= layout_.rows) {
      fetch_runs(tile, codes, memory);
    } else {
      fetch_channels(tile, codes, memory);
    }
  }

 private:
  /// The channels of a strip follow each other in each group. With vectors, everything is at multiples of 16 bytes.
  __device__ void fetch_runs(int64_t tile, const uint8_t* codes, uint8_t* memory) const {
    constexpr int kChunk = sizeof(uint4);
    const int64_t first = columns_.first_channel();
    const int channels = static_cast<int>(min(int64_t{columns_.strip_channels()}, layout_.channels - first));
    const int chunks = channels * shape_.channel / kChunk;
    for (int group = 0; group < shape_.groups(); ++group) {
      const int64_t block = tile * shape_.groups() + group;
      const uint8_t* const from =
          codes + ((block * layout_.channels + first) << shape_.group_octets_log2) * shape_.width;
      uint8_t* const to = memory + group * shape_.group;
#pragma unroll 1
      for (int chunk = lane_index(); chunk < chunks; chunk += kWarp) {
        const int column = static_cast<int>(static_cast<uint32_t>(chunk) * shape_.columns_per_chunk >> 16);
        __pipeline_memcpy_async(to + (chunk * kChunk + column * kStagePadding), from + chunk * kChunk, kChunk);
      }
    }
  }

  /// Any tile, word by word: a channel a thread.
  __device__ void fetch_channels(int64_t tile, const uint8_t* codes, uint8_t* memory) const {
    constexpr int kWord = sizeof(uint32_t);
#pragma unroll 1
    for (int c = lane_index(); c < columns_.strip_channels(); c += kWarp) {
      const int64_t channel = columns_.first_channel() + c;
#pragma unroll 1
      for (int group = 0; group < shape_.groups(); ++group) {
        const int64_t block = tile * shape_.groups() + group;
        if (channel >= layout_.channels || block * layout_.group_rows >= layout_.rows) {
          break;
        }
        const int bytes = static_cast<int>(layout_.block_octets(block)) * shape_.width;
        const uint8_t* const from = codes + layout_.group_offset(block, channel, shape_.width);
        uint8_t* const to =
            memory + group * shape_.group + c / kChannels * shape_.column + c % kChannels * shape_.channel;
#pragma unroll 1
        for (int at = 0; at < bytes; at += kWord) {
          __pipeline_memcpy_async(to + at, from + at, kWord);
        }
      }
    }
  }

  const ColumnLayout<int64_t>& layout_;
  const WarpColumns& columns_;
  const StageShape& shape_;
};

}  // namespace actnn::cuda
