#pragma once

#include <cstdint>

#include "actnn/core/layout.h"
#include "src/cuda/launch.cuh"

/// \file
/// How warps share a dense range of elements that a kernel walks through once.

namespace actnn::cuda {

/// Steps of a warp through a tile: so many independent loads are in flight per thread.
inline constexpr int kTileSteps = 4;

/// Blocks on a multiprocessor: for more, the compiler would save registers by waiting for half of a tile before it
/// loads the other half.
inline constexpr int kTileBlocks = 6;

/// Steps of a warp through a rest, one element per lane each.
inline constexpr int kRestSteps = 8;

/// Tiles come first. In each step of a tile the lanes handle 32 neighbouring vectors, so that every access of a warp is
/// contiguous. Then follow rests of 256 elements: the end of the range, or all of it where a pointer is not aligned.
///
///     | tile 0                                          | tile 1 ... | rest 0                        | rest 1 ...
///     | step 0: 32 vectors | step 1: 32 vectors | ...   |            | step 0: 32 elements | ...     |
template <int vector_elements>
class WarpTiles {
 public:
  static constexpr int kTileVectors = kTileSteps * kWarp;
  static constexpr int kTileElements = kTileVectors * vector_elements;
  static constexpr int kRestElements = kRestSteps * kWarp;

  WarpTiles(int64_t count, bool aligned) : count_(count), tiles_(aligned ? count / kTileElements : 0) {}

  unsigned blocks() const {
    return blocks_for(tiles_ + ceil_div(count_ - tiles_ * kTileElements, kRestElements), kBlockThreads / kWarp);
  }

  /// Calls `tile(number)` or `rest(first element, elements)`, in all lanes of a warp alike.
  template <class Tile, class Rest>
  __device__ void run(Tile&& tile, Rest&& rest) const {
    const int64_t warp = thread_index() / kWarp;
    if (warp < tiles_) {
      return tile(warp);
    }
    const int64_t first = tiles_ * kTileElements + (warp - tiles_) * kRestElements;
    if (first < count_) {
      rest(first, static_cast<int>(min(count_ - first, int64_t{kRestElements})));
    }
  }

 private:
  int64_t count_;
  int64_t tiles_;
};

}  // namespace actnn::cuda
