#pragma once

#include <cuda_pipeline.h>

#include <algorithm>

#include "actnn/cuda/columns.h"
#include "src/cuda/column_packing.cuh"
#include "src/cuda/launch.cuh"
#include "src/cuda/row_stage.cuh"

/// \file
/// The pass that packs a matrix, and what else may be done with its elements in it.

namespace actnn::cuda {

/// Of a multiprocessor.
inline constexpr int kPackingBlocks = 3;
/// Tiles of a block: one, or two where all tiles fill the device many times. With several of few, some multiprocessors
/// would have more than others, by a tenth to a third at the sizes of transformers.
inline int64_t packed_tiles(const ColumnLayout<int64_t>& layout, int thread_channels) {
  constexpr int64_t kTurns = 8;
  const int64_t strips = ceil_div(layout.channels, int64_t{kMostWidth} * thread_channels);
  const int64_t tiles = ceil_div(layout.rows, int64_t{kTileRows}) * strips;
  return tiles < kTurns * kPackingBlocks * multiprocessors() ? 1 : 2;
}

struct NothingElse {
  template <class Place>
  __device__ void operator()(const Place& /*place*/, const typename Place::Row (&/*x*/)[kRows]) const {}
};

/// `besides(place, x)` has a thread's elements, too.
template <class Element, bool kVectors, class Besides>
__global__ void __launch_bounds__(kMostThreads, kPackingBlocks)
    quantize_columns_kernel(const Element* elements, const ColumnTarget target, const ColumnTiles tiles,
                            const Besides besides) {
  using Place = PackingPlace<Element, kVectors>;
  constexpr int kChannels = Place::kChannels;
  extern __shared__ uint4 shared[];
  wait_for_kernels_before();
  const int bits = target.layout.bits;
  target.begin();
  auto* const memory = reinterpret_cast<uint8_t*>(shared);
  Place place(tiles);
  const RowStage<Place> stage(memory + static_cast<int>(threadIdx.x) / kWarp * RowStage<Place>::kBytes);
  const int stage_bytes = static_cast<int>(blockDim.x) / kWarp * RowStage<Place>::kBytes;
  const CodeSlots codes(memory + stage_bytes, place, bits);
  const ColumnRanges<Element, Element, Place> ranges(memory + stage_bytes + Slots::bytes_of_codes(tiles, bits), tiles,
                                                     place, target);
  const auto is_plain = [](int64_t /*entry, or channel*/) { return Grid::kPlain; };
  const auto copy_at = [](int /*entry*/, float extreme) { return extreme; };
  const RandomState random = target.state();
  const auto fetch = [&](int64_t tile) {
    Place ahead = place;
    ahead.move(tile);
    stage.fetch(ahead, elements);
    __pipeline_commit();
  };
  if (tiles.part() < tiles.tiles) {
    fetch(tiles.part());
  }
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    place.move(tile);
    typename Place::Row x[kRows];
    __pipeline_wait_prior(0);
    __syncwarp();
    stage.take(place, elements, x);
    if (tile + tiles.parts < tiles.tiles) {
      fetch(tile + tiles.parts);
    }
    besides(place, x);
    Extremes<Element> extremes[kChannels];
    find_extremes(x, extremes);
    ranges.set(place, extremes);
    __syncthreads();
    const bool irregular = ranges.find(tile, /*keeps_below=*/true, copy_at, is_plain);
    const bool regular = __syncthreads_or(irregular) == 0;
    const uint32_t factor = opaque(1U << bits);
#pragma unroll
    for (int pair = 0; pair < kChannels; pair += 2) {
      const PairNoise noise(random, place.noise_block(pair), target.is_random());
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const ColumnEncoder encoder = ranges.encoder(pair + i);
        OctetEncoder octet(factor);
#pragma unroll
        for (int order = 0; order < kRows; ++order) {
          const int j = encoding_order(order);
          octet.add(j, noise.add(position_in_column<Grid::kPlain>(x[j][pair + i], encoder), i, j));
        }
        codes.store_octet(pair + i, octet.codes());
      }
    }
    __syncthreads();
    if (regular) {
      codes.write<kChannels>(TileWords(tiles, target.layout.group_rows, tile), target.codes);
    } else {
      pack_tile_slowly<Element>(tiles, target, tile, is_plain, [&](int64_t row, int64_t channel) {
        return SidedNumber{to_float(elements[row * tiles.channels + channel]), true};
      });
    }
  }
}

template <class Element, bool kVectors, class Besides>
cudaError_t launch_packing(const QuantizeColumns& arguments, const Besides& besides, cudaStream_t stream) {
  using Place = PackingPlace<Element, kVectors>;
  const ColumnLayout<int64_t>& layout = arguments.layout;
  const ColumnTarget target(layout, arguments.packed, arguments.random, arguments.rounding);
  const auto kernel = quantize_columns_kernel<Element, kVectors, Besides>;
  const auto bytes_of = [&](const ColumnTiles& of) {
    return static_cast<int>(of.threads()) / kWarp * RowStage<Place>::kBytes + Slots::bytes_of_codes(of, layout.bits) +
           ColumnRanges<Element, Element, Place>::bytes(of, layout.group_rows);
  };
  const ColumnTiles tiles = tiles_of_device(layout.rows, layout.channels, arguments.type, kPackingBlocks * kMostThreads,
                                            packed_tiles(layout, Place::kChannels), bytes_of);
  const int bytes = bytes_of(tiles);
  const cudaError_t error = allow_shared_memory(kernel, bytes);
  if (error != cudaSuccess) {
    return error;
  }
  // An empty matrix has a header, too.
  return launch_kernel(kernel, std::max(tiles.blocks(), 1U), tiles.threads(), bytes, stream,
                       static_cast<const Element*>(arguments.elements), target, tiles, besides);
}

}  // namespace actnn::cuda
