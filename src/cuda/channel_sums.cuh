#pragma once

#include <cstdint>

#include "src/cuda/split_tiles.cuh"

/// \file
/// Sums over the rows of each channel, in a fixed order: of a thread's rows and a warp's in single precision, which are few, of a
/// block's warps and of all blocks in double. Each block leaves two numbers a channel, [2][parts][channels].

namespace actnn::cuda {

/// Whole rounds of a GPU of 132 multiprocessors that run two or three blocks each. A constant, so that sums do not depend on the
/// GPU.
inline constexpr int64_t kSumBlocks = 792;
/// A thread adds up 4 rows of each tile.
inline constexpr int64_t kMostSumTiles = 32;

inline SplitTiles tiles_of_sums(const SplitLayout<int64_t>& layout) { return {layout, kSumBlocks, kMostSumTiles}; }

/// Two sums of each of a thread's channels.
struct ThreadSums {
  float first[kOctet] = {};
  float second[kOctet] = {};

  /// Adds up the warp's threads of the same channels: threads at a distance of `width`.
  __device__ void add_up_warp(int width) {
    for (int distance = kWarp / 2; distance >= width; distance /= 2) {
#pragma unroll
      for (int k = 0; k < kOctetChannels; ++k) {
        first[k] += __shfl_xor_sync(~0U, first[k], distance);
        second[k] += __shfl_xor_sync(~0U, second[k], distance);
      }
    }
  }
};

/// The sums of a block's warps; channel k of octet o is at 8 o + k.
struct WarpSums {
  float first[kTileWarps][kBlockThreads];
  float second[kTileWarps][kBlockThreads];

  /// All threads of the block take part.
  __device__ void add(ThreadSums& sums, int width) {
    sums.add_up_warp(width);
    if (lane_index() < width) {
#pragma unroll
      for (int k = 0; k < kOctetChannels; ++k) {
        first[threadIdx.x / kWarp][lane_index() * kOctetChannels + k] = sums.first[k];
        second[threadIdx.x / kWarp][lane_index() * kOctetChannels + k] = sums.second[k];
      }
    }
    __syncthreads();
  }
};

/// The channel of whose two numbers this thread takes care, in [0, channels), or -1.
__device__ inline int64_t channel_of_thread(const SplitTiles& tiles) {
  const int64_t strip_channels = int64_t{tiles.width()} * kOctet;
  const int64_t channel = tiles.strip() * strip_channels + threadIdx.x;
  return threadIdx.x < strip_channels && channel < tiles.layout.channels ? channel : -1;
}

/// Where a block's numbers are.
struct PartialSums {
  float* numbers;
  int64_t parts;
  int64_t channels;

  __device__ float& first(int64_t part, int64_t channel) const { return numbers[part * channels + channel]; }
  __device__ float& second(int64_t part, int64_t channel) const { return first(parts + part, channel); }
};

/// The second stage: a block has 8 channels, and of each the parts in 32 slices.
inline constexpr int kSlicedChannels = 8;
inline constexpr int kSlices = kBlockThreads / kSlicedChannels;

struct SliceSums {
  double first = 0.0;
  double second = 0.0;
};

/// Adds up what `of_part(part, channel, sums)` adds for all parts. Threads below `kSlicedChannels` get the sums of their channel,
/// which is perhaps behind the last.
template <class OfPart>
__device__ SliceSums add_up_parts(int64_t parts, int64_t channels, OfPart&& of_part) {
  __shared__ SliceSums slices[kSlices][kSlicedChannels];
  const int own = static_cast<int>(threadIdx.x) % kSlicedChannels;
  const int slice = static_cast<int>(threadIdx.x) / kSlicedChannels;
  const int64_t channel = int64_t{blockIdx.x} * kSlicedChannels + own;
  SliceSums sums;
  if (channel < channels) {
#pragma unroll 4
    for (int64_t part = slice; part < parts; part += kSlices) {
      of_part(part, channel, sums);
    }
  }
  slices[slice][own] = sums;
  __syncthreads();
  SliceSums all;
  if (slice == 0) {
    for (int i = 0; i < kSlices; ++i) {
      all.first += slices[i][own].first;
      all.second += slices[i][own].second;
    }
  }
  return all;
}

}  // namespace actnn::cuda
