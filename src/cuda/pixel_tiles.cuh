#pragma once

#include <algorithm>
#include <cstdint>

#include "actnn/core/layout.h"
#include "src/cuda/launch.cuh"

/// \file
/// How threads share the pixels of a batch of images: blocks are tiles in the image, so that windows that overlap are
/// read by neighbours that share a cache.

namespace actnn::cuda {

/// How many there are of each, in memory order with the innermost first.
struct PixelExtents {
  int64_t inner;
  int64_t columns;
  int64_t rows;
  int64_t outer;
};

struct PixelPlace {
  int inner;
  int column;
  int row;
  int outer;
};

/// Cuts each axis in powers of two, which make up a block.
class PixelTiles {
 public:
  explicit PixelTiles(const PixelExtents& extents) {
    int left = kThreadsLog2;
    const int inner = choose_log2(extents.inner, 2, 5);
    left -= inner;
    // Square tiles of pixels overlap least with their neighbours; at least a warp should be contiguous.
    const int width = std::max((left + 1) / 2, 5 - inner);
    const int columns = choose_log2(extents.columns, width - 1, width);
    left -= columns;
    const int rows = choose_log2(extents.rows, std::max(left - 1, 0), left);
    left -= rows;
    const int outer = choose_log2(extents.outer, left, left);

    inner_ = Axis(extents.inner, inner);
    columns_ = Axis(extents.columns, columns);
    rows_ = Axis(extents.rows, rows);
    threads_ = 1 << (inner + columns + rows + outer);
    blocks_ = inner_.tiles * columns_.tiles * rows_.tiles * ceil_div(extents.outer, int64_t{1} << outer);
  }

  int threads() const { return threads_; }
  int64_t blocks() const { return blocks_; }

  /// The calling thread's place; it may lie beyond the end of any axis.
  __device__ PixelPlace place() const {
    uint32_t thread = threadIdx.x;
    uint32_t block = blockIdx.x;
    const int inner = inner_.take(thread, block);
    const int column = columns_.take(thread, block);
    const int row = rows_.take(thread, block);
    const int outer_threads = static_cast<int>(blockDim.x) >> (inner_.log2 + columns_.log2 + rows_.log2);
    return {inner, column, row, static_cast<int>(block) * outer_threads + static_cast<int>(thread)};
  }

 private:
  static constexpr int kThreadsLog2 = 8;
  static_assert(1 << kThreadsLog2 == kBlockThreads);

  struct Axis {
    int64_t tiles = 1;
    int log2 = 0;  ///< of the threads along a tile
    Divider divider{1};

    Axis() = default;
    Axis(int64_t extent, int threads_log2)
        : tiles(ceil_div(extent, int64_t{1} << threads_log2)),
          log2(threads_log2),
          divider(static_cast<uint32_t>(tiles)) {}

    /// Splits off this axis' part of the numbers of a thread in its block and of a block in the grid.
    __device__ int take(uint32_t& thread, uint32_t& block) const {
      const uint32_t inside = thread & ((1U << log2) - 1);
      thread >>= log2;
      const uint32_t rest = divider(block);
      const uint32_t tile = block - rest * static_cast<uint32_t>(tiles);
      block = rest;
      return static_cast<int>(tile << log2 | inside);
    }
  };

  /// The power of two that pads `extent` least; the larger of equal ones. Not much larger than `extent`.
  static int choose_log2(int64_t extent, int lowest, int highest) {
    while (lowest > 0 && extent <= int64_t{1} << (lowest - 1)) {
      --lowest;
    }
    int best = lowest;
    for (int log2 = lowest; log2 <= highest; ++log2) {
      best = align_up(extent, int64_t{1} << log2) <= align_up(extent, int64_t{1} << best) ? log2 : best;
    }
    return best;
  }

  Axis inner_;
  Axis columns_;
  Axis rows_;
  int threads_;
  int64_t blocks_;
};

}  // namespace actnn::cuda
