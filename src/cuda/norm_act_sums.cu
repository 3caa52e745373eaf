#include "actnn/cuda/norm_act.h"
#include "actnn/cuda/norm_act_channels.h"
#include "src/cuda/channel_sums.cuh"
#include "src/cuda/column_copies.cuh"
#include "src/cuda/store_channels.cuh"

namespace actnn::cuda {
namespace {

/// Blocks of 256 threads of a multiprocessor, as many as have the registers for a tile.
template <bool kCommon, bool kSecond, bool kFromX>
constexpr int kSumsBlocks = 2;

/// Kernels without vectors or with a slope are rare: they ask at run time what there is, so that there are fewer of
/// them.
template <bool kVectors, Below kBelow>
constexpr bool kIsCommon = kVectors&& kBelow == Below::kFlat;

template <class Element, bool kVectors, ActivationFunction kFunction, Below kBelow, bool kSecond, bool kFromX>
__global__ void __launch_bounds__(kMostThreads, kSumsBlocks<kIsCommon<kVectors, kBelow>, kSecond, kFromX>)
    sums_kernel(const Backward<Element> backward, const ColumnTiles tiles, const DecodeMap* channels,
                const PartialSums partial) {
  using Copies = ColumnCopies<Element, kVectors, kFromX>;
  using Place = typename Copies::Place;
  constexpr int kChannels = Place::kChannels;
  extern __shared__ uint4 shared[];
  __shared__ BlockSums of_block;
  __shared__ typename Copies::Table table;
  __shared__ ChannelTable<float2> maps;
  Place place(tiles);
  constexpr bool kMaySecond = kSecond || !kIsCommon<kVectors, kBelow>;
  const bool has_second = kMaySecond && backward.second_grad != nullptr;
  table.load(backward, tiles);
  if constexpr (is_smooth(kFunction)) {
    maps.load(tiles, [&](int64_t channel) { return make_float2(channels[channel].a, channels[channel].b); });
  }
  SavedStage<Place> stage(reinterpret_cast<uint8_t*>(shared), tiles, backward);
  Copies copies(backward, table, linear_channels(channels, place));
  ThreadSums<kChannels> sums;
  // Backwards, so that the next kernel, which begins at the front, meets what is still in the cache.
  const int64_t steps = ceil_div(tiles.tiles - tiles.part(), tiles.parts);
  for (int64_t step = steps - 1; step >= 0; --step) {
    const int64_t tile = tiles.part() + step * tiles.parts;
    place.move(tile);
    stage.fetch(place, tile);
    typename Place::Row grad[kRows];
    typename Place::Row second[kMaySecond ? kRows : 1];
    place.template load<false>(backward.grad, grad);
    if constexpr (kMaySecond) {
      if (has_second) {
        place.template load<false>(backward.second_grad, second);
      }
    }
    copies.load(place);
    stage.wait();
    if (place.rows() < kRows) {
      place.clear_missing(grad);
      if constexpr (kMaySecond) {
        place.clear_missing(second);
      }
    }
    // Of rows that do not exist, nothing is in the stage.
#pragma unroll
    for (int pair = 0; pair < kChannels && place.rows() != 0; pair += 2) {
      copies.visit(stage, place, pair, [&](int i, const SavedOctet& octet) {
        const int k = pair + i;
        float2 map = make_float2(0.0F, 0.0F);
        if constexpr (is_smooth(kFunction)) {
          map = maps.of(place, k);
        }
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          float gradient = grad[j][k];
          if constexpr (kMaySecond) {
            gradient = has_second ? gradient + second[j][k] : gradient;
          }
          const float scaled = map.x * octet.copies[j];
          const float dz =
              gradient_of_z<kFunction, kBelow>(gradient, octet.passes_gradient(j), backward.slope, scaled + map.y);
          sums.first[k] += dz;
          sums.second[k] = __fmaf_rn(dz, octet.copies[j], sums.second[k]);
        }
      });
    }
  }
  of_block.set(place, sums);

  const int64_t channel = channel_of_thread(tiles);
  if (channel < 0) {
    return;
  }
  double sum = 0.0;
  double copy_sum = 0.0;
  for (int octet_row = 0; octet_row < kTileOctetRows; ++octet_row) {
    sum += of_block.first[octet_row][threadIdx.x];
    copy_sum += of_block.second[octet_row][threadIdx.x];
  }
  partial.first(tiles.part(), channel) = static_cast<float>(sum);
  partial.second(tiles.part(), channel) = static_cast<float>(copy_sum);
}

template <class Store>
__global__ void __launch_bounds__(kJoinThreads) join_sums_kernel(const PartialSums partial, const Store store) {
  join_parts(
      partial, store,
      [](int /*part*/, float sum, float copy_sum, SliceSums& sums) {
        sums.first += sum;
        sums.second += copy_sum;
      },
      [](const SliceSums& sums) {
        return make_float2(static_cast<float>(sums.first), static_cast<float>(sums.second));
      });
}

/// Both stages; `store` gets the sums of each channel.
template <class Store>
cudaError_t add_up(const NormActBackward& backward, const DecodeMap* channels, float* scratch, const Store& store,
                   cudaStream_t stream) {
  const int64_t count = backward.layout.channels;
  if (count == 0) {
    return cudaSuccess;
  }
  const ColumnTiles tiles = tiles_of_sums(backward.layout.rows, count, backward.type);
  const PartialSums partial{scratch, tiles.parts, count};
  cudaError_t error = cudaSuccess;
  if (tiles.parts != 0) {
    const bool vectors = has_vectors(count, backward.type, backward.grad, backward.second_grad, backward.x);
    with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
      const Backward<Element> arguments(backward);
      with_gradient_function(backward.activation, [&]<ActivationFunction kFunction, Below kBelow>() {
        with_flags(
            [&]<bool kVectors, bool kSecond, bool kFromX>() {
              if constexpr (kIsCommon<kVectors, kBelow> || !kSecond) {
                const auto kernel = sums_kernel<Element, kVectors, kFunction, kBelow, kSecond, kFromX>;
                const int bytes = SavedStage<ColumnPlace<Element, kVectors>>::bytes(tiles, arguments);
                error = allow_shared_memory(kernel, bytes);
                if (error == cudaSuccess) {
                  kernel<<<tiles.blocks(), tiles.threads(), bytes, stream>>>(arguments, tiles, channels, partial);
                }
              }
            },
            vectors, vectors && kBelow == Below::kFlat && backward.second_grad != nullptr, backward.x != nullptr);
      });
    });
  }
  if (error != cudaSuccess) {
    return error;
  }
  join_sums_kernel<<<blocks_for(count, kSlicedChannels), join_threads(tiles.parts), 0, stream>>>(partial, store);
  return cudaGetLastError();
}

}  // namespace

cudaError_t norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, float* scratch, float* sums,
                          float* copy_sums, cudaStream_t stream) {
  return add_up(backward, channels, scratch, StorePair{sums, copy_sums}, stream);
}

cudaError_t norm_act_sums_and_gradients(const NormActBackward& backward, const NormalizedChannels& channels,
                                        float* scratch, NormActGradient* gradients, float* grad_weight,
                                        float* grad_bias, cudaStream_t stream) {
  const StoreGradients store{channels, gradients, grad_weight, grad_bias};
  return add_up(backward, channels.decode, scratch, store, stream);
}

}  // namespace actnn::cuda
