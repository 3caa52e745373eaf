#pragma once

#include <algorithm>
#include <cstdint>

#include "src/cuda/column_tiles.cuh"
#include "src/cuda/launch.cuh"

/// \file
/// How warps share a matrix of rows x channels that is unpacked: without waiting for each other, so that there is
/// always one with work while others wait for memory. A warp has a *strip* of up to 8 vectors side by side and walks
/// over some of its tiles of 256 rows, whose packed codes it fetches at once. It visits them in *passes*, in which each
/// thread has an octet of rows of one vector.

namespace actnn::cuda {

/// Warps and threads of a block that unpacks, where it has the shared memory for so many.
inline constexpr int kUnpackingWarps = 4;
inline constexpr int kUnpackingThreads = kUnpackingWarps * kWarp;

struct WarpColumns : ColumnMatrix {
  int width_log2;   ///< vectors of a strip, of which the last strips may lack some
  int passes_log2;  ///< of a tile that a warp visits: a tile may be several warps'
  int64_t strips;
  int64_t items;  ///< of a strip: its tiles, or parts of them
  int64_t parts;  ///< warps that share the items of a strip: part p has items p, p + parts, ...

  static constexpr int kMostWidthLog2 = 3;

  /// For about `wanted_warps` warps in all.
  WarpColumns(int64_t matrix_rows, int64_t matrix_channels, int64_t wanted_warps)
      : ColumnMatrix{matrix_rows, matrix_channels},
        width_log2(kMostWidthLog2),
        passes_log2(0),
        strips(0),
        items(0),
        parts(0) {
    if (rows == 0 || channels == 0) {
      return;
    }
    const int64_t vectors = ceil_div(channels, int64_t{kPackedChannels});
    // Narrower where more than a quarter of the threads would have nothing to do.
    while (width_log2 > 0 && ceil_div(vectors, width()) * width() * 3 > vectors * 4) {
      --width_log2;
    }
    strips = ceil_div(vectors, width());
    const int64_t tiles = ceil_div(rows, int64_t{kTileRows});
    passes_log2 = width_log2;
    while (passes_log2 > 0 && (tiles * strips << (width_log2 - passes_log2)) < wanted_warps) {
      --passes_log2;
    }
    items = tiles << (width_log2 - passes_log2);
    parts = std::clamp<int64_t>(wanted_warps / strips, 1, items);
  }

  ACTNN_HOST_DEVICE int64_t width() const { return int64_t{1} << width_log2; }
  unsigned blocks(int block_warps) const { return blocks_for(strips * parts, block_warps); }

  __device__ int64_t strip() const { return warp() % static_cast<unsigned>(strips); }
  /// Below `parts` for the warps that have something to do.
  __device__ int64_t part() const { return warp() / static_cast<unsigned>(strips); }
  __device__ int64_t first_channel() const { return strip() * width() * kPackedChannels; }
  __device__ int strip_channels() const { return kPackedChannels << width_log2; }
  __device__ int column() const { return lane_index() & (static_cast<int>(width()) - 1); }

  __device__ static unsigned warp() { return blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp; }

  /// Items are counted in 32 bits.
  __device__ int tile(int item) const { return item >> (width_log2 - passes_log2); }
  __device__ int first_pass(int item) const { return (item & ((1 << (width_log2 - passes_log2)) - 1)) << passes_log2; }
  __device__ int passes() const { return 1 << passes_log2; }
  /// The octet of rows of the tile that this thread has in a pass.
  __device__ int octet_row(int pass) const { return (pass << (5 - width_log2)) + (lane_index() >> width_log2); }
};

/// Each warp has one item; items are as small as it takes for so many threads a multiprocessor, where there are the
/// rows. Blocks that wait take the places of those that end: of warps that fill the device once, some end when a fifth
/// of the time is left.
inline WarpColumns warps_of_items(int64_t rows, int64_t channels, int threads_per_multiprocessor) {
  WarpColumns columns(rows, channels, int64_t{multiprocessors()} * threads_per_multiprocessor / kWarp);
  columns.parts = columns.items;
  return columns;
}

/// What each warp's channels are, in shared memory.
template <class Coefficients, class Place>
class WarpTable {
 public:
  static constexpr int kEntries = (Place::kChannels + 1) << WarpColumns::kMostWidthLog2;

  /// By `of_channel(channel)`. All threads of a warp take part.
  template <class OfChannel>
  __device__ void load(const WarpColumns& columns, OfChannel&& of_channel) {
    const int64_t first = columns.first_channel();
    for (int c = lane_index(); c < columns.strip_channels(); c += kWarp) {
      own()[table_entry<Place>(c / Place::kChannels, c % Place::kChannels)] =
          of_channel(min(first + c, columns.channels - 1));
    }
    __syncwarp();
  }
  __device__ const Coefficients& of(const Place& place, int k) const {
    return own()[table_entry<Place>(place.column(), k)];
  }

 private:
  __device__ Coefficients* own() { return coefficients_[threadIdx.x / kWarp]; }
  __device__ const Coefficients* own() const { return coefficients_[threadIdx.x / kWarp]; }

  Coefficients coefficients_[kUnpackingWarps][kEntries];
};

}  // namespace actnn::cuda
