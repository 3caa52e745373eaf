#include "actnn/core/mask.h"
#include "actnn/cuda/mask.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/vector.cuh"
#include "src/cuda/warp_tiles.cuh"

namespace actnn::cuda {
namespace {

/// Bools in 16 bytes, and the bytes of their mask.
constexpr int kVectorBools = kVectorElements<uint8_t>;
constexpr int kVectorMaskBytes = kVectorBools / kOctet;

/// Moves bits 7, 15, 23, 31 to 28..31, and bits 0..3 to 0, 8, 16, 24: a product adds up shifted copies, of which no two
/// bits meet.
constexpr uint32_t kGather = 1U << 21 | 1U << 14 | 1U << 7 | 1U;

/// Bit k: whether byte k is not 0.
__device__ uint32_t pack_bools(uint32_t bools) {
  constexpr uint32_t kLow = 0x7F7F7F7F;
  const uint32_t nonzero = (((bools & kLow) + kLow) | bools) & ~kLow;
  return (nonzero * kGather) >> 28;
}

/// Byte k: bit k of the lowest four.
__device__ uint32_t unpack_bools(uint32_t bits) { return ((bits & 0xF) * kGather) & 0x01010101; }

/// Writes the mask of a rest, 32 elements a step, of which each lane holds the ballot.
__device__ void store_ballots(const uint32_t (&ballots)[kRestSteps], int elements, uint8_t* mask) {
  const int lane = lane_index();
  uint32_t ballot = 0;
#pragma unroll
  for (int step = 0; step < kRestSteps; ++step) {
    ballot = lane / 4 == step ? ballots[step] : ballot;
  }
  if (lane * kOctet < elements) {
    mask[lane] = static_cast<uint8_t>(ballot >> (8 * (lane % 4)));
  }
}

/// Bytes k of four lanes, those whose numbers differ in two bits only (1 and 2, times `kDistance`), become the bytes of
/// the word of the k-th of them.
template <int kDistance>
__device__ uint32_t transpose_bytes(uint32_t bytes, int lane) {
  const uint32_t neighbour = __shfl_xor_sync(~0U, bytes, kDistance);
  bytes = __byte_perm(bytes, neighbour, (lane & kDistance) == 0 ? 0x6240 : 0x3715);
  const uint32_t opposite = __shfl_xor_sync(~0U, bytes, 2 * kDistance);
  return __byte_perm(bytes, opposite, (lane & (2 * kDistance)) == 0 ? 0x5410 : 0x3276);
}

/// How the mask of a tile is spread over lanes: of each vector its lane has one bit per element, for eight 16-bit
/// elements a byte and for four floats the lower or (odd lanes) upper half of one.
template <class Element>
struct TileMask {
  static constexpr bool kHalfBytes = kVectorElements<Element> < kOctet;
  static constexpr int kStepBytes = kWarp * kVectorElements<Element> / static_cast<int>(kOctet);

  /// Byte `step` of `bits` belongs to the lane's vector of that step. Words of the mask are put together from
  /// neighbouring lanes, so that a warp writes 128 (64) contiguous bytes at once.
  __device__ static void store(uint32_t bits, uint8_t* tile_mask) {
    const int lane = lane_index();
    int word = 0;
    bool writes = true;
    if constexpr (kHalfBytes) {
      const uint32_t neighbour = __shfl_xor_sync(~0U, bits, 1);
      bits = transpose_bytes<2>(lane % 2 == 0 ? bits | neighbour << 4 : neighbour | bits << 4, lane);
      word = lane / 2 % 4 * (kStepBytes / 4) + lane / 8;
      writes = lane % 2 == 0;
    } else {
      bits = transpose_bytes<1>(bits, lane);
      word = lane % 4 * (kStepBytes / 4) + lane / 4;
    }
    if (writes) {
      __stcs(reinterpret_cast<uint32_t*>(tile_mask) + word, bits);
    }
  }

  /// The bits of the lane's vector in a step.
  __device__ static uint32_t load(const uint8_t* tile_mask, int step) {
    const int lane = lane_index();
    if constexpr (kHalfBytes) {
      return __ldg(tile_mask + step * kStepBytes + lane / 2) >> (4 * (lane % 2));
    } else {
      return __ldg(tile_mask + step * kStepBytes + lane);
    }
  }
};

/// ReLU of a vector in place; returns where the gradient passes, one bit per element.
__device__ uint32_t rectify(Vector& v, float /*tag*/) {
  uint32_t passes = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float x = float_of(v.word[i]);
    passes |= static_cast<uint32_t>(gradient_passes(x)) << i;
    v.word[i] = bits_of(rectified(x));
  }
  return passes;
}

template <class Element>
__device__ uint32_t rectify(Vector& v, Element /*tag*/) {
  uint32_t passes = 0;  // of element k in bit k / 2, and 16 more for odd k
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t pair = v.word[i];
    const uint32_t nonzero = magnitudes_above(pair, 0);
    const uint32_t nan = magnitudes_above(pair, Pair<Element>::kInfinity);
    v.word[i] = pair & ~spread_half_signs(pair & nonzero & ~nan);
    passes |= (((nonzero & ~pair) | nan) & kHalfSigns) >> (15 - 2 * i);
  }
  return (passes | passes >> 15) & 0xFF;
}

/// Zeroes the elements of a vector whose bit is 0.
__device__ void apply_bits(Vector& v, uint32_t bits, float /*tag*/) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v.word[i] = (bits >> i & 1) != 0 ? v.word[i] : 0;
  }
}

template <class Element>
__device__ void apply_bits(Vector& v, uint32_t bits, Element /*tag*/) {
  const uint32_t spaced = bits | bits << 15;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v.word[i] &= spread_half_signs(spaced << (15 - 2 * i));
  }
}

template <class Element>
__device__ void relu_tile(const Element* input, Element* output, uint8_t* mask) {
  Vector vectors[kTileSteps];
  const int first = lane_index() * kVectorElements<Element>;
  constexpr int kStep = kWarp * kVectorElements<Element>;
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    vectors[step] = load_streaming(input + first + step * kStep);
  }
  uint32_t bits = 0;
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    bits |= rectify(vectors[step], Element{}) << (8 * step);
    store(output + first + step * kStep, vectors[step]);
  }
  TileMask<Element>::store(bits, mask);
}

template <class Element>
__device__ void relu_rest(const Element* input, Element* output, uint8_t* mask, int elements) {
  Element values[kRestSteps];
#pragma unroll
  for (int step = 0; step < kRestSteps; ++step) {
    const int i = step * kWarp + lane_index();
    values[step] = i < elements ? input[i] : Element{};
  }
  uint32_t ballots[kRestSteps];
#pragma unroll
  for (int step = 0; step < kRestSteps; ++step) {
    const int i = step * kWarp + lane_index();
    ballots[step] = __ballot_sync(~0U, gradient_passes(values[step]));
    if (i < elements) {
      output[i] = rectified(values[step]);
    }
  }
  store_ballots(ballots, elements, mask);
}

template <class Element>
using ElementTiles = WarpTiles<kVectorElements<Element>>;

template <class Element>
__global__ void __launch_bounds__(kBlockThreads, kTileBlocks)
    relu_kernel(ElementTiles<Element> tiles, const Element* input, Element* output, uint8_t* mask) {
  tiles.run(
      [&](int64_t tile) {
        const int64_t first = tile * tiles.kTileElements;
        relu_tile(input + first, output + first, mask + first / kOctet);
      },
      [&](int64_t first, int elements) { relu_rest(input + first, output + first, mask + first / kOctet, elements); });
}

template <class Element>
__device__ void apply_mask_tile(const Element* input, const uint8_t* mask, Element* output) {
  Vector vectors[kTileSteps];
  uint32_t bits[kTileSteps];
  const int first = lane_index() * kVectorElements<Element>;
  constexpr int kStep = kWarp * kVectorElements<Element>;
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    vectors[step] = load_streaming(input + first + step * kStep);
    bits[step] = TileMask<Element>::load(mask, step);
  }
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    apply_bits(vectors[step], bits[step], Element{});
    store(output + first + step * kStep, vectors[step]);
  }
}

template <class Element>
__device__ void apply_mask_rest(const Element* input, const uint8_t* mask, Element* output, int elements) {
  Element values[kRestSteps];
#pragma unroll
  for (int step = 0; step < kRestSteps; ++step) {
    const int i = step * kWarp + lane_index();
    const bool passes = i < elements && (mask[i / kOctet] >> (i % kOctet) & 1) != 0;
    values[step] = passes ? input[i] : Element{};
  }
#pragma unroll
  for (int step = 0; step < kRestSteps; ++step) {
    const int i = step * kWarp + lane_index();
    if (i < elements) {
      output[i] = values[step];
    }
  }
}

template <class Element>
__global__ void __launch_bounds__(kBlockThreads, kTileBlocks)
    apply_mask_kernel(ElementTiles<Element> tiles, const Element* input, const uint8_t* mask, Element* output) {
  tiles.run(
      [&](int64_t tile) {
        const int64_t first = tile * tiles.kTileElements;
        apply_mask_tile(input + first, mask + first / kOctet, output + first);
      },
      [&](int64_t first, int elements) {
        apply_mask_rest(input + first, mask + first / kOctet, output + first, elements);
      });
}

using BoolTiles = WarpTiles<kVectorBools>;

__global__ void __launch_bounds__(kBlockThreads, kTileBlocks)
    pack_mask_kernel(BoolTiles tiles, const uint8_t* bools, uint8_t* mask) {
  const int lane = lane_index();
  tiles.run(
      [&](int64_t tile) {
        const int64_t first = tile * BoolTiles::kTileVectors + lane;
        Vector vectors[kTileSteps];
#pragma unroll
        for (int step = 0; step < kTileSteps; ++step) {
          vectors[step] = load_streaming(bools + (first + step * kWarp) * kVectorBools);
        }
#pragma unroll
        for (int step = 0; step < kTileSteps; ++step) {
          const Vector& v = vectors[step];
          const uint32_t bits = pack_bools(v.word[0]) | pack_bools(v.word[1]) << 4 | pack_bools(v.word[2]) << 8 |
                                pack_bools(v.word[3]) << 12;
          reinterpret_cast<uint16_t*>(mask)[first + step * kWarp] = static_cast<uint16_t>(bits);
        }
      },
      [&](int64_t first, int elements) {
        uint32_t ballots[kRestSteps];
#pragma unroll
        for (int step = 0; step < kRestSteps; ++step) {
          const int i = step * kWarp + lane;
          ballots[step] = __ballot_sync(~0U, i < elements && bools[first + i] != 0);
        }
        store_ballots(ballots, elements, mask + first / kOctet);
      });
}

__global__ void __launch_bounds__(kBlockThreads, kTileBlocks)
    unpack_mask_kernel(BoolTiles tiles, const uint8_t* mask, uint8_t* bools) {
  const int lane = lane_index();
  tiles.run(
      [&](int64_t tile) {
        const int64_t first = tile * BoolTiles::kTileVectors + lane;
        uint32_t bits[kTileSteps];
#pragma unroll
        for (int step = 0; step < kTileSteps; ++step) {
          bits[step] = __ldcs(reinterpret_cast<const uint16_t*>(mask) + first + step * kWarp);
        }
#pragma unroll
        for (int step = 0; step < kTileSteps; ++step) {
          const Vector v{{unpack_bools(bits[step]), unpack_bools(bits[step] >> 4), unpack_bools(bits[step] >> 8),
                          unpack_bools(bits[step] >> 12)}};
          store(bools + (first + step * kWarp) * kVectorBools, v);
        }
      },
      [&](int64_t first, int elements) {
        for (int i = lane; i < elements; i += kWarp) {
          bools[first + i] = mask[(first + i) / kOctet] >> (i % kOctet) & 1;
        }
      });
}

}  // namespace

cudaError_t pack_mask(const uint8_t* bools, int64_t count, uint8_t* mask, cudaStream_t stream) {
  if (count == 0) {
    return cudaSuccess;
  }
  const BoolTiles tiles(count, are_aligned(sizeof(Vector), bools) && are_aligned(kVectorMaskBytes, mask));
  pack_mask_kernel<<<tiles.blocks(), kBlockThreads, 0, stream>>>(tiles, bools, mask);
  return cudaGetLastError();
}

cudaError_t unpack_mask(const uint8_t* mask, int64_t count, uint8_t* bools, cudaStream_t stream) {
  if (count == 0) {
    return cudaSuccess;
  }
  const BoolTiles tiles(count, are_aligned(sizeof(Vector), bools) && are_aligned(kVectorMaskBytes, mask));
  unpack_mask_kernel<<<tiles.blocks(), kBlockThreads, 0, stream>>>(tiles, mask, bools);
  return cudaGetLastError();
}

cudaError_t relu(const void* input, ElementType type, int64_t count, void* output, uint8_t* mask, cudaStream_t stream) {
  if (count == 0) {
    return cudaSuccess;
  }
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    const ElementTiles<Element> tiles(count, are_aligned(sizeof(Vector), input, output) && are_aligned(4, mask));
    relu_kernel<<<tiles.blocks(), kBlockThreads, 0, stream>>>(tiles, static_cast<const Element*>(input),
                                                              static_cast<Element*>(output), mask);
  });
  return cudaGetLastError();
}

cudaError_t apply_mask(const void* input, ElementType type, int64_t count, const uint8_t* mask, void* output,
                       cudaStream_t stream) {
  if (count == 0) {
    return cudaSuccess;
  }
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    const ElementTiles<Element> tiles(count, are_aligned(sizeof(Vector), input, output));
    apply_mask_kernel<<<tiles.blocks(), kBlockThreads, 0, stream>>>(tiles, static_cast<const Element*>(input), mask,
                                                                    static_cast<Element*>(output));
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
