#include <cuda_pipeline.h>

#include "actnn/cuda/columns.h"
#include "src/cuda/column_copies.cuh"
#include "src/cuda/column_packing.cuh"
#include "src/cuda/row_stage.cuh"

namespace actnn::cuda {
namespace {

/// Of a multiprocessor.
constexpr int kBlocks = 3;
constexpr int kUnpackingBlocks = 6;

template <class Element, bool kVectors>
__global__ void __launch_bounds__(kMostThreads, kBlocks)
    quantize_columns_kernel(const Element* elements, const ColumnTarget target, const ColumnTiles tiles) {
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

template <class Element, bool kVectors, bool kAffine>
__global__ void __launch_bounds__(kUnpackingThreads, kUnpackingBlocks)
    dequantize_columns_kernel(const Backward<Element> source, const WarpColumns columns, const StageParts parts,
                              Element* elements) {
  using Copies = ColumnCopies<Element, kVectors, /*kFromX=*/false, /*kBothSides=*/false, kAffine>;
  using Place = typename Copies::Place;
  extern __shared__ uint4 shared[];
  wait_for_kernels_before();
  if (columns.part() >= columns.parts) {
    return;
  }
  typename Copies::Table table;
  Copies copies(source, columns, parts, shared, table, [](int64_t /*channel*/) { return true; });
  Place place(columns, columns.first_channel(), columns.column());
  const auto unpack = [&] {
    typename Place::Row values[kRows];
    FiniteCheck<Element> check;
    float results[kRows][2];
    copies.for_each_pair(
        place,
        [&](int /*pair*/, int i, const SavedOctet& octet) {
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            results[j][i] = octet.copies[j];
          }
        },
        [&](int pair) {
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            values[j].set_pair(pair, results[j][0], results[j][1]);
            check.add(values[j], pair);
          }
        });
    if (!check.all_finite()) {
      make_nans_canonical(values);
    }
    place.store(values, elements);
  };
  auto no_rows = copies.template rows_ahead<0>();
  copies.template visit</*kBackwards=*/false, /*kInStep=*/true>(place, no_rows, unpack);
}

}  // namespace

cudaError_t quantize_columns(const QuantizeColumns& arguments, cudaStream_t stream) {
  const ColumnLayout<int64_t>& layout = arguments.layout;
  const ColumnTarget target(layout, arguments.packed, arguments.random, arguments.rounding);
  cudaError_t error = cudaSuccess;
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    with_flags(
        [&]<bool kVectors>() {
          const auto kernel = quantize_columns_kernel<Element, kVectors>;
          using Place = PackingPlace<Element, kVectors>;
          const auto bytes_of = [&](const ColumnTiles& of) {
            return static_cast<int>(of.threads()) / kWarp * RowStage<Place>::kBytes +
                   Slots::bytes_of_codes(of, layout.bits) +
                   ColumnRanges<Element, Element, Place>::bytes(of, layout.group_rows);
          };
          const ColumnTiles tiles =
              tiles_of_device(layout.rows, layout.channels, arguments.type, kBlocks * kMostThreads, bytes_of);
          const int bytes = bytes_of(tiles);
          error = allow_shared_memory(kernel, bytes);
          if (error == cudaSuccess) {
            // An empty matrix has a header, too.
            error = launch_kernel(kernel, std::max(tiles.blocks(), 1U), tiles.threads(), bytes, stream,
                                  static_cast<const Element*>(arguments.elements), target, tiles);
          }
        },
        has_vectors(layout.channels, arguments.type, arguments.elements));
  });
  return error;
}

cudaError_t dequantize_columns(const DequantizeColumns& arguments, cudaStream_t stream) {
  const ColumnLayout<int64_t>& layout = arguments.layout;
  if (layout.rows == 0 || layout.channels == 0) {
    return cudaSuccess;
  }
  const WarpColumns columns = warps_of_items(layout.rows, layout.channels, kUnpackingBlocks * kUnpackingThreads);
  cudaError_t error = cudaSuccess;
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    Backward<Element> source(NormActBackward{.packed = arguments.packed, .layout = layout, .type = arguments.type});
    source.values.weight = arguments.weight;
    source.values.bias = arguments.bias;
    with_flags(
        [&]<bool kVectors, bool kAffine>() {
          const auto kernel = dequantize_columns_kernel<Element, kVectors, kAffine>;
          const StageParts parts(columns, source);
          error = launch_warps(kernel, columns, parts, stream, source, columns, parts,
                               static_cast<Element*>(arguments.elements));
        },
        has_packed_vectors(layout.channels, arguments.type, arguments.elements),
        arguments.weight != nullptr || arguments.bias != nullptr);
  });
  return error;
}

}  // namespace actnn::cuda
