#pragma once

#include <algorithm>
#include <cstdint>

#include "src/cuda/column_tiles.cuh"
#include "src/cuda/warp_columns.cuh"

/// \file
/// Sums over the rows of each channel, in a fixed order: in single precision over the rows of a thread, in double over
/// a block's threads and all blocks. Each block leaves two sums per channel, [2][parts][channels].

namespace actnn::cuda {

/// Whole rounds of a GPU of 132 multiprocessors that run two or three blocks of 256 threads each. A constant, so that
/// sums do not depend on the GPU.
inline constexpr int64_t kSumThreads = 792 * int64_t{kMostThreads};
/// For small tensors: one round of two blocks each, since otherwise a block's sums would cost as much as its few tiles.
inline constexpr int64_t kFewSumThreads = 264 * int64_t{kMostThreads};
inline constexpr int64_t kFewestSumTiles = 4;
/// A thread adds up 8 rows of each tile.
inline constexpr int64_t kMostSumTiles = 16;

inline ColumnTiles tiles_of_sums(int64_t rows, int64_t channels, ElementType type) {
  const int thread_channels = static_cast<int>(sizeof(Vector) / element_size(type));
  const ColumnTiles tiles(rows, channels, thread_channels, kSumThreads, kMostSumTiles);
  const bool is_small = tiles.tiles < tiles.parts * kFewestSumTiles;
  return is_small ? ColumnTiles(rows, channels, thread_channels, kFewSumThreads, kMostSumTiles) : tiles;
}

/// As `tiles_of_sums`, of warps for themselves: whole rounds of 16 a multiprocessor, so many that a thread has at most
/// 512 rows.
inline constexpr int64_t kSumWarps = 132 * int64_t{16};
inline constexpr int kMostSumPasses = 64;
inline WarpColumns warps_of_sums(int64_t rows, int64_t channels) {
  const WarpColumns columns(rows, channels, kSumWarps);
  const int64_t wanted = columns.strips * ceil_div(columns.items, int64_t{kMostSumPasses} >> columns.passes_log2);
  const int64_t rounds = ceil_div(wanted, kSumWarps);
  return rounds <= 1 ? columns : WarpColumns(rows, channels, rounds * kSumWarps);
}

/// Two sums of each of a thread's channels.
template <int kChannels>
struct ThreadSums {
  float first[kChannels] = {};
  float second[kChannels] = {};
};

/// The sums of a block's threads.
struct BlockSums {
  static constexpr int kMostChannels = kMostWidth * static_cast<int>(sizeof(Vector) / sizeof(uint16_t));
  float first[kTileOctetRows][kMostChannels];
  float second[kTileOctetRows][kMostChannels];

  /// All threads of the block take part, and are synchronized.
  template <class Place, int kChannels>
  __device__ void set(const Place& place, const ThreadSums<kChannels>& sums) {
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      first[place.octet_row()][place.column() * kChannels + k] = sums.first[k];
      second[place.octet_row()][place.column() * kChannels + k] = sums.second[k];
    }
    __syncthreads();
  }
};

/// The channel whose two sums this thread handles, in [0, channels), or -1.
__device__ inline int64_t channel_of_thread(const ColumnTiles& tiles) {
  const int64_t channel = tiles.first_channel() + threadIdx.x;
  return static_cast<int>(threadIdx.x) < tiles.strip_channels() && channel < tiles.channels ? channel : -1;
}

/// Where a block's sums are.
struct PartialSums {
  float* numbers;
  int64_t parts;
  int64_t channels;

  __device__ float& first(int64_t part, int64_t channel) const { return numbers[part * channels + channel]; }
  __device__ float& second(int64_t part, int64_t channel) const { return first(parts + part, channel); }
};

/// The second stage: a block has 8 channels, which are as many bytes of a part as memory is read in, and of each the
/// parts in slices. It is short, and most of its time is latency: each thread has few parts, and loads all of them at
/// once.
inline constexpr int kSlicedChannels = 8;
inline constexpr int kMostSlices = 128;
inline constexpr int kPartsOfThread = 4;  ///< where there are enough slices
inline constexpr int kPartsAtOnce = 8;
inline constexpr int kWarpSlices = kWarp / kSlicedChannels;
inline constexpr int kJoinThreads = kMostSlices * kSlicedChannels;

/// Threads of a block.
inline unsigned join_threads(int64_t parts) {
  const int64_t warps = ceil_div(parts, int64_t{kPartsOfThread} * kWarpSlices);
  return static_cast<unsigned>(std::clamp<int64_t>(warps * kWarp, kWarp, kJoinThreads));
}

/// This thread's channel, which may be beyond the last.
__device__ inline int64_t channel_to_join() {
  return int64_t{blockIdx.x} * kSlicedChannels + threadIdx.x % kSlicedChannels;
}

struct SliceSums {
  double first = 0.0;
  double second = 0.0;

  /// Adds up the warp's threads of the same channel.
  __device__ void add_up_warp() {
#pragma unroll
    for (int distance = kWarp / 2; distance >= kSlicedChannels; distance /= 2) {
      first += __shfl_xor_sync(~0U, first, distance);
      second += __shfl_xor_sync(~0U, second, distance);
    }
  }
};

/// Adds up what `of_part(part, first, second, sums)` adds for the two sums of all parts. The first warp gets the sums
/// of its threads' channels.
template <class OfPart>
__device__ SliceSums add_up_parts(const PartialSums& partial, OfPart&& of_part) {
  __shared__ SliceSums of_warps[kJoinThreads / kWarp][kSlicedChannels];
  const int parts = static_cast<int>(partial.parts);
  const int slices = static_cast<int>(blockDim.x) / kSlicedChannels;
  const int own = static_cast<int>(threadIdx.x) % kSlicedChannels;
  const int slice = static_cast<int>(threadIdx.x) / kSlicedChannels;
  SliceSums sums;
  if (channel_to_join() < partial.channels) {
    const float* first = &partial.first(slice, channel_to_join());
    const float* second = &partial.second(slice, channel_to_join());
    const int64_t step = slices * partial.channels;
    for (int part = slice; part < parts; part += slices * kPartsAtOnce) {
      float numbers[kPartsAtOnce][2];
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i, first += step, second += step) {
        if (part + i * slices < parts) {
          numbers[i][0] = *first;
          numbers[i][1] = *second;
        }
      }
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) {
        if (part + i * slices < parts) {
          of_part(part + i * slices, numbers[i][0], numbers[i][1], sums);
        }
      }
    }
  }
  sums.add_up_warp();
  if (lane_index() < kSlicedChannels) {
    of_warps[threadIdx.x / kWarp][own] = sums;
  }
  __syncthreads();
  SliceSums all;
  if (threadIdx.x < kWarp) {
    for (int warp = slice; warp < static_cast<int>(blockDim.x) / kWarp; warp += kWarpSlices) {
      all.first += of_warps[warp][own].first;
      all.second += of_warps[warp][own].second;
    }
    all.add_up_warp();
  }
  return all;
}

/// The second stage as a whole: `store` gets what `numbers(sums)` makes of a channel's sums. What `store` needs of the
/// channel is loaded along with the parts.
template <class Store, class OfPart, class Numbers>
__device__ void join_parts(const PartialSums& partial, const Store& store, OfPart&& of_part, Numbers&& numbers) {
  const int64_t channel = channel_to_join();
  const bool stores = threadIdx.x < kSlicedChannels && channel < partial.channels;
  typename Store::Known known{};
  if (stores) {
    known = store.known(channel);
  }
  const SliceSums sums = add_up_parts(partial, of_part);
  if (stores) {
    const float2 pair = numbers(sums);
    store(channel, known, pair.x, pair.y);
  }
}

}  // namespace actnn::cuda
