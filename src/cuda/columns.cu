#include "actnn/cuda/columns.h"
#include "src/cuda/column_copies.cuh"
#include "src/cuda/column_packing.cuh"

namespace actnn::cuda {
namespace {

constexpr int kBlocks = 3;  ///< of 256 threads of a multiprocessor

template <class Element, bool kVectors>
__global__ void __launch_bounds__(kMostThreads, kBlocks)
    quantize_columns_kernel(const Element* elements, const ColumnTarget target, const ColumnTiles tiles) {
  using Place = ColumnPlace<Element, kVectors>;
  constexpr int kChannels = Place::kChannels;
  extern __shared__ uint4 shared[];
  const int bits = target.layout.bits;
  target.begin();
  auto* const memory = reinterpret_cast<uint8_t*>(shared);
  const CodeStage codes(memory, target.layout, tiles, bits);
  const ColumnRanges<Element, Element> ranges(memory + CodeStage::bytes(tiles, bits), tiles, target);
  const auto grid_of = [](int64_t /*channel*/) { return Grid::kPlain; };
  const auto copy_at = [](int64_t /*channel*/, float extreme) { return extreme; };
  const RandomState random = target.state();
  Place place(tiles);
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    place.move(tile);
    typename Place::Row x[kRows];
    place.template load<true>(elements, x);
    for_extremes(x, [&](int k, const Extremes<Element>& extremes) { ranges.set(place, k, extremes); });
    __syncthreads();
    const bool irregular = ranges.find(tile, /*keeps_below=*/true, copy_at, grid_of);
    const bool regular = __syncthreads_or(irregular) == 0;
    const RowMask existing(place.rows(), bits);
    const uint32_t factor = opaque(1U << bits);
#pragma unroll
    for (int pair = 0; pair < kChannels; pair += 2) {
      const PairNoise noise(random, place.noise_block(pair), target.is_random());
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const ColumnEncoder encoder = ranges.encoder(place, pair + i);
        OctetEncoder octet(factor);
#pragma unroll
        for (int order = 0; order < kRows; ++order) {
          const int j = encoding_order(order);
          octet.add(j, noise.add(position_in_column<Grid::kPlain>(x[j][pair + i], encoder), i, j));
        }
        codes.store_octet(octet.codes(existing), codes.octet(place, pair + i));
      }
    }
    __syncthreads();
    if (regular) {
      codes.flush(place, tile, target.codes());
    } else {
      pack_tile_slowly<Element>(tiles, target, tile, grid_of, [&](int64_t row, int64_t channel) {
        return SidedNumber{to_float(elements[row * tiles.channels + channel]), true};
      });
    }
  }
}

template <class Element, bool kVectors>
__global__ void __launch_bounds__(kMostThreads, kBlocks)
    dequantize_columns_kernel(const Backward<Element> source, const ColumnTiles tiles, Element* elements) {
  using Copies = ColumnCopies<Element, kVectors, /*kFromX=*/false>;
  using Place = typename Copies::Place;
  extern __shared__ uint4 shared[];
  Place place(tiles);
  SavedStage<Place> stage(reinterpret_cast<uint8_t*>(shared), tiles, source);
  const typename Copies::Table table{};
  Copies copies(source, table, 0);
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    place.move(tile);
    stage.fetch(place, tile);
    copies.load(place);
    stage.wait();
    typename Place::Row values[kRows];
    FiniteCheck<Element> check;
#pragma unroll
    for (int pair = 0; pair < Place::kChannels; pair += 2) {
      float results[kRows][2];
      copies.visit(stage, place, pair, [&](int i, const SavedOctet& octet) {
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          results[j][i] = octet.copies[j];
        }
      });
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        values[j].set_pair(pair, results[j][0], results[j][1]);
        check.add(values[j], pair);
      }
    }
    if (!check.all_finite()) {
      make_nans_canonical(values);
    }
    place.store(values, elements);
  }
}

}  // namespace

cudaError_t quantize_columns(const QuantizeColumns& arguments, cudaStream_t stream) {
  const ColumnLayout<int64_t>& layout = arguments.layout;
  const ColumnTarget target{layout, arguments.packed, arguments.random, arguments.rounding};
  const ColumnTiles tiles = tiles_of_device(layout.rows, layout.channels, arguments.type, kBlocks * kMostThreads);
  cudaError_t error = cudaSuccess;
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    with_flags(
        [&]<bool kVectors>() {
          const auto kernel = quantize_columns_kernel<Element, kVectors>;
          const int bytes =
              CodeStage::bytes(tiles, layout.bits) + ColumnRanges<Element, Element>::bytes(tiles, layout.group_rows);
          error = allow_shared_memory(kernel, bytes);
          if (error == cudaSuccess) {
            // An empty matrix has a header, too.
            kernel<<<std::max(tiles.blocks(), 1U), tiles.threads(), bytes, stream>>>(
                static_cast<const Element*>(arguments.elements), target, tiles);
          }
        },
        has_vectors(layout.channels, arguments.type, arguments.elements));
  });
  return error != cudaSuccess ? error : cudaGetLastError();
}

cudaError_t dequantize_columns(const DequantizeColumns& arguments, cudaStream_t stream) {
  const ColumnLayout<int64_t>& layout = arguments.layout;
  if (layout.rows == 0 || layout.channels == 0) {
    return cudaSuccess;
  }
  const ColumnTiles tiles = tiles_of_device(layout.rows, layout.channels, arguments.type, kBlocks * kMostThreads);
  cudaError_t error = cudaSuccess;
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    const Backward<Element> source(
        NormActBackward{.packed = arguments.packed, .layout = layout, .type = arguments.type});
    with_flags(
        [&]<bool kVectors>() {
          const auto kernel = dequantize_columns_kernel<Element, kVectors>;
          const int bytes = SavedStage<ColumnPlace<Element, kVectors>>::bytes(tiles, source);
          error = allow_shared_memory(kernel, bytes);
          if (error == cudaSuccess) {
            kernel<<<tiles.blocks(), tiles.threads(), bytes, stream>>>(source, tiles,
                                                                       static_cast<Element*>(arguments.elements));
          }
        },
        has_vectors(layout.channels, arguments.type, arguments.elements));
  });
  return error != cudaSuccess ? error : cudaGetLastError();
}

}  // namespace actnn::cuda
