#include "actnn/cuda/sample_statistics.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/octet.cuh"
#include "src/cuda/tiles.cuh"

namespace actnn::cuda {
namespace {

/// Tiles of 1024 elements that a warp adds up one after the other.
constexpr int kWarpTiles = 4;
constexpr int kBlockTiles = kBlockWarps * kWarpTiles;

int64_t parts_of(int64_t tiles) { return ceil_div(tiles, kBlockTiles); }

__device__ double warp_sum(double value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(~0u, value, distance);
  }
  return value;
}

/// The first thread gets the sum over the block.
__device__ double block_sum(double value) {
  __shared__ double of_warps[kBlockWarps];
  value = warp_sum(value);
  if (lane_index() == 0) {
    of_warps[threadIdx.x / kWarp] = value;
  }
  __syncthreads();
  double sum = 0.0;
  for (int warp = 0; warp < kBlockWarps; ++warp) {
    sum += of_warps[warp];
  }
  return sum;
}

__device__ double squared_distance(const Range& range) {
  const double distance = range.largest - range.smallest;
  return distance * distance;
}

/// What this lane contributes to the sum of squared ranges: a tile, or after the tiles a part of the rest.
template <class Element>
__device__ double part_ranges(const Element* elements, int64_t count, int64_t group_size, int64_t part,
                              const TilePlan& plan) {
  if (part < plan.tiles) {
    const TilePart tile(plan.lanes_log2);
    Octet<Element> octets[kLaneOctets];
    tile.load(elements + part * kTileElements, octets);
    const Range range = Octet<Element>::range(octets, tile.lanes());
    return tile.member() == 0 ? squared_distance(range) : 0.0;
  }
  const int64_t begin = plan.rest_group(part - plan.tiles) * group_size;
  const Range range = range_of_run(elements, begin, min(begin + group_size, count), plan.rest_lanes);
  return lane_index() % plan.rest_lanes == 0 && begin < count ? squared_distance(range) : 0.0;
}

/// What this lane contributes to a tile's sum of squares.
template <class Element>
__device__ double tile_squares(const Element* elements, int64_t count, int64_t tile) {
  const Element* begin = elements + tile * kTileElements;
  float sums[2] = {};  // 32 squares a lane: single precision is enough until lanes are added up
  if (reinterpret_cast<uintptr_t>(elements) % 16 == 0 && (tile + 1) * kTileElements <= count) {
    Octet<Element> octets[kLaneOctets];
#pragma unroll
    for (int c = 0; c < kLaneOctets; ++c) {
      octets[c].load(begin + (lane_index() + c * kWarp) * kOctet);
    }
#pragma unroll
    for (int i = 0; i < kLaneOctets * kOctet; ++i) {
      const float x = octets[i / kOctet][i % kOctet];
      sums[i % 2] = __fmaf_rn(x, x, sums[i % 2]);
    }
  } else {
    for (int64_t i = tile * kTileElements + lane_index(); i < min((tile + 1) * kTileElements, count); i += kWarp) {
      const float x = to_float(elements[i]);
      sums[0] = __fmaf_rn(x, x, sums[0]);
    }
  }
  return static_cast<double>(sums[0]) + static_cast<double>(sums[1]);
}

/// Adds up `of_tile(elements of the sample, tile)` over the block's tiles of one sample.
template <class Element, class OfTile>
__device__ void add_tiles(const Samples& samples, int64_t tiles, uint32_t parts_per_sample, const Divider& parts,
                          double* scratch, OfTile&& of_tile) {
  const uint32_t sample = parts(blockIdx.x);
  const uint32_t part = blockIdx.x - sample * parts_per_sample;
  const Element* elements = static_cast<const Element*>(samples.elements) + sample * samples.count;
  double sum = 0.0;
  for (int i = 0; i < kWarpTiles; ++i) {
    const int64_t tile = int64_t{part} * kBlockTiles + i * kBlockWarps + threadIdx.x / kWarp;
    if (tile < tiles) {
      sum += of_tile(elements, tile);
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    scratch[blockIdx.x] = sum;
  }
}

template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    ranges_kernel(Samples samples, int64_t group_size, TilePlan plan, uint32_t parts_per_sample, Divider parts,
                  double* scratch) {
  add_tiles<Element>(samples, plan.tiles + plan.rest_warps, parts_per_sample, parts, scratch,
                     [&](const Element* elements, int64_t tile) {
                       return part_ranges(elements, samples.count, group_size, tile, plan);
                     });
}

template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    squares_kernel(Samples samples, int64_t tiles, uint32_t parts_per_sample, Divider parts, double* scratch) {
  add_tiles<Element>(samples, tiles, parts_per_sample, parts, scratch, [&](const Element* elements, int64_t tile) {
    return tile_squares(elements, samples.count, tile);
  });
}

/// One warp a sample adds up its parts.
__global__ void __launch_bounds__(kBlockThreads)
    add_parts_kernel(const double* scratch, int64_t samples, int64_t parts, float* sums) {
  const int64_t sample = warp_index();
  if (sample >= samples) {
    return;
  }
  double sum = 0.0;
  for (int64_t part = lane_index(); part < parts; part += kWarp) {
    sum += scratch[sample * parts + part];
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) {
    sums[sample] = static_cast<float>(sum);
  }
}

TilePlan plan_for(const Samples& samples, int64_t group_size) {
  return {samples.count, group_size,
          segments_are_aligned(samples.elements, samples.type, samples.count, samples.samples)};
}

int64_t warps_of(const TilePlan& plan) { return plan.tiles + plan.rest_warps; }

cudaError_t add_parts(const Samples& samples, int64_t parts, const double* scratch, float* sums, cudaStream_t stream) {
  if (samples.samples != 0) {
    add_parts_kernel<<<blocks_for(samples.samples, kBlockWarps), kBlockThreads, 0, stream>>>(scratch, samples.samples,
                                                                                             parts, sums);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t statistics_scratch(const Samples& samples, int64_t group_size) {
  return samples.samples * parts_of(warps_of(plan_for(samples, group_size)));
}

cudaError_t group_range_squares(const Samples& samples, int64_t group_size, double* scratch, float* sums,
                                cudaStream_t stream) {
  const TilePlan plan = plan_for(samples, group_size);
  const int64_t parts = parts_of(warps_of(plan));
  if (parts * samples.samples != 0) {
    with_element_type(samples.type, [&]<class Element>(Element /*tag*/) {
      ranges_kernel<Element><<<static_cast<unsigned>(parts * samples.samples), kBlockThreads, 0, stream>>>(
          samples, group_size, plan, static_cast<uint32_t>(parts), Divider(static_cast<uint32_t>(parts)), scratch);
    });
  }
  return add_parts(samples, parts, scratch, sums, stream);
}

cudaError_t square_norms(const Samples& samples, double* scratch, float* sums, cudaStream_t stream) {
  const int64_t tiles = ceil_div(samples.count, kTileElements);
  const int64_t parts = parts_of(tiles);
  if (parts * samples.samples != 0) {
    with_element_type(samples.type, [&]<class Element>(Element /*tag*/) {
      squares_kernel<Element><<<static_cast<unsigned>(parts * samples.samples), kBlockThreads, 0, stream>>>(
          samples, tiles, static_cast<uint32_t>(parts), Divider(static_cast<uint32_t>(parts)), scratch);
    });
  }
  return add_parts(samples, parts, scratch, sums, stream);
}

}  // namespace actnn::cuda
