#pragma once

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/philox.h"
#include "src/cuda/launch.cuh"

/// \file
/// The noise of the elements that a warp rounds, or decodes, together.

namespace actnn::cuda {

/// The noise of a tile of elements, in shared memory: each lane draws whole Philox blocks, so that none is drawn twice,
/// and then reads what belongs to its elements. Passing the words on by shuffles would take more instructions.
///
///     byte, element    0 ... 15 | 16 ... 31 | ... | 496 ... 511 | 512 ... 527 | ...
///     drawn by lane    0        | 1         | ... | 31          | 0           | ...
template <int kElements>
class TileNoise {
 public:
  /// Draws the noise of the octets from `first_octet` on, an even number, with the bits flipped that are set in `flip`.
  /// All lanes of the warp take part.
  __device__ void draw(const RandomState& random, uint64_t first_octet, uint32_t flip = 0) {
    const uint64_t first_block = first_octet / 2 + static_cast<uint64_t>(lane_index());
#pragma unroll
    for (int i = 0; i < kBlocks; i += kWarp) {
      const PhiloxBlock block = random.block(first_block + static_cast<uint64_t>(i));
      blocks_[i + lane_index()] =
          make_uint4(block.word[0] ^ flip, block.word[1] ^ flip, block.word[2] ^ flip, block.word[3] ^ flip);
    }
    __syncwarp();
  }

  /// Zeros instead of noise.
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kBlocks; i += kWarp) {
      blocks_[i + lane_index()] = make_uint4(0, 0, 0, 0);
    }
    __syncwarp();
  }

  /// The noise of an octet of the tile.
  __device__ OctetNoise octet(int number) const {
    const uint2 words = reinterpret_cast<const uint2*>(blocks_)[number];
    return {{words.x, words.y}};
  }
  /// The noise of elements 4 * number to 4 * number + 3, the lowest byte first.
  __device__ uint32_t quad(int number) const { return reinterpret_cast<const uint32_t*>(blocks_)[number]; }
  /// The noise of an element.
  __device__ uint32_t operator[](int element) const { return reinterpret_cast<const uint8_t*>(blocks_)[element]; }

 private:
  static constexpr int kBlocks = kElements / static_cast<int>(2 * kOctet);
  static_assert(kBlocks % kWarp == 0);

  uint4 blocks_[kBlocks];
};

}  // namespace actnn::cuda
