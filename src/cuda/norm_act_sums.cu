#include "actnn/cuda/norm_act.h"
#include "actnn/cuda/norm_act_channels.h"
#include "src/cuda/channel_sums.cuh"
#include "src/cuda/lane_copies.cuh"
#include "src/cuda/split_tiles.cuh"
#include "src/cuda/store_channels.cuh"

namespace actnn::cuda {
namespace {

/// Blocks of a multiprocessor, as many as have the registers for a tile.
template <class Element, bool kVectors, bool kSecond, bool kFromX, bool kDerived>
constexpr int kSumsBlocks = sizeof(Element) == sizeof(float) || !kVectors || kSecond || kFromX || kDerived ? 2 : 3;

template <class Element, bool kVectors, bool kSecond, bool kFromX, bool kDerived>
__global__ void __launch_bounds__(kBlockThreads, kSumsBlocks<Element, kVectors, kSecond, kFromX, kDerived>)
    sums_kernel(const Backward<Element> backward, const SplitTiles tiles, const DecodeMap* channels,
                const PartialSums partial) {
  using Place = SplitPlace<Element, kVectors>;
  using Copies = LaneCopies<Element, kVectors, kFromX>;
  __shared__ WarpSums of_warps;
  __shared__ typename Copies::Table table;
  Place place(tiles);
  // Kernels without vectors are rare: they ask at run time, so that there are fewer of them to compile.
  const bool has_second = kVectors ? kSecond : backward.second_grad != nullptr;
  table.load(backward, place);
  const uint32_t linear = Copies::linear_channels(channels, place);
  const Way way = way_of<kDerived>(backward, linear);
  ThreadSums sums;
  // Backwards, so that the next kernel, which begins at the front, meets what is still in the cache.
  const int64_t steps = ceil_div(tiles.tiles - tiles.part(), tiles.parts);
  for (int64_t step = steps - 1; step >= 0; --step) {
    place.move(tiles.part() + step * tiles.parts);
    typename Place::Row grad[kLaneRows];
    typename Place::Row second[kLaneRows];
    place.template load<false>(backward.grad, grad);
    if (has_second) {
      place.template load<false>(backward.second_grad, second);
    }
    const auto copies = Copies::template load<false>(backward, place);
    const auto derivatives = LaneDerivatives<kDerived>::load(backward, place);
    // All rows exist on the short ways.
    const auto add = [&]<Way kWay>() {
      copies.template decode<kWay>(
          table, derived_anew(linear), [&](int pair, int j, const bool(&side)[2], const float(&s)[2]) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float gradient = grad[j][pair + i];
              if (has_second) {
                gradient = gradient + second[j][pair + i];
              }
              const float dz = derivatives.template gradient<kWay>(backward, gradient, j, pair + i, side[i]);
              if (kWay != Way::kAny || j < place.rows()) {
                sums.first[pair + i] += dz;
                sums.second[pair + i] = __fmaf_rn(dz, s[i], sums.second[pair + i]);
              }
            }
          });
    };
    with_way<kFromX>(place.rows() == kLaneRows ? way : Way::kAny, add);
  }
  of_warps.add(sums, tiles.width());

  const int64_t channel = channel_of_thread(tiles);
  if (channel < 0) {
    return;
  }
  double sum = 0.0;
  double copy_sum = 0.0;
  for (int warp = 0; warp < kTileWarps; ++warp) {
    sum += of_warps.first[warp][threadIdx.x];
    copy_sum += of_warps.second[warp][threadIdx.x];
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
  const SplitLayout<int64_t>& layout = backward.layout;
  if (layout.channels == 0) {
    return cudaSuccess;
  }
  const SplitTiles tiles = tiles_of_sums(layout);
  const PartialSums partial{scratch, tiles.parts, layout.channels};
  if (tiles.parts != 0) {
    const bool vectors = has_vectors(layout, backward.grad, backward.second_grad, backward.x);
    with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
      with_flags(
          [&]<bool kVectors, bool kSecond, bool kFromX, bool kDerived>() {
            if constexpr (kVectors || !kSecond) {
              sums_kernel<Element, kVectors, kSecond, kFromX, kDerived>
                  <<<tiles.blocks(), kBlockThreads, 0, stream>>>(Backward<Element>(backward), tiles, channels, partial);
            }
          },
          vectors, vectors && backward.second_grad != nullptr, backward.x != nullptr, has_derivatives(backward));
    });
  }
  join_sums_kernel<<<blocks_for(layout.channels, kSlicedChannels), join_threads(tiles.parts), 0, stream>>>(partial,
                                                                                                           store);
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
