#include "actnn/cuda/norm_act.h"
#include "src/cuda/lane_copies.cuh"
#include "src/cuda/split_tiles.cuh"

namespace actnn::cuda {
namespace {

/// Blocks of a multiprocessor, as many as have the registers for a tile.
template <class Element, bool kVectors, bool kSecond, bool kFromX, bool kDerived>
constexpr int kGradientBlocks = sizeof(Element) == sizeof(float) || !kVectors || kSecond || kFromX || kDerived ? 2 : 3;
constexpr int kOutputBlocks = 3;

template <class Element, bool kVectors, bool kSecond, bool kFromX, bool kSum, bool kDerived>
__global__ void __launch_bounds__(kBlockThreads, kGradientBlocks<Element, kVectors, kSecond, kFromX, kDerived>)
    input_gradient_kernel(const Backward<Element> backward, const SplitTiles tiles, const NormActGradient* channels,
                          Element* grad_input, Element* grad_sum) {
  using Place = SplitPlace<Element, kVectors>;
  using Copies = LaneCopies<Element, kVectors, kFromX>;
  Place place(tiles);
  // Kernels without vectors are rare: they ask at run time, so that there are fewer of them to compile.
  const bool has_second = kVectors ? kSecond : backward.second_grad != nullptr;
  const bool has_sum = kVectors ? kSum : grad_sum != nullptr;
  __shared__ typename Copies::Table table;
  table.load(backward, place);
  const uint32_t linear = Copies::linear_channels(channels, place);
  const Way way = way_of<kDerived>(backward, linear);
  __shared__ ChannelTable<float4> maps;
  maps.load(place, [&](int64_t channel) {
    const NormActGradient& map = channels[channel];
    return make_float4(map.scale, map.of_copy, map.shift, 0.0F);
  });
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    place.move(tile);
    // All loads come before the stores, which may be to the same memory.
    typename Place::Row grad[kLaneRows];
    typename Place::Row second[kLaneRows];
    place.template load<true>(backward.grad, grad);
    if (has_second) {
      place.template load<true>(backward.second_grad, second);
    }
    const auto copies = Copies::template load<true>(backward, place);
    const auto derivatives = LaneDerivatives<kDerived>::load(backward, place);
    typename Place::Row sum[kLaneRows];
    FiniteCheck check;
    const auto map_back = [&]<Way kWay>() {
      copies.template decode<kWay>(
          table, derived_anew(linear), [&](int pair, int j, const bool(&side)[2], const float(&s)[2]) {
            float results[2];
            float dz[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float gradient = grad[j][pair + i];
              if (has_second) {
                gradient = gradient + second[j][pair + i];
              }
              dz[i] = derivatives.template gradient<kWay>(backward, gradient, j, pair + i, side[i]);
              const float4 map = maps[pair + i];
              const float of_gradient = map.x * dz[i];
              const float of_copy = map.y * s[i];
              const float both = of_gradient + of_copy;
              results[i] = both + map.z;
              check.add(results[i]);
            }
            grad[j].set_pair(pair, results[0], results[1]);
            if (has_sum) {
              sum[j].set_pair(pair, dz[0], dz[1]);
            }
          });
    };
    with_way<kFromX>(way, map_back);
    if (!check.all_finite()) {
      make_nans_canonical(grad);
      if (has_sum) {
        make_nans_canonical(sum);
      }
    }
    place.store(grad, grad_input);
    if (has_sum) {
      place.store(sum, grad_sum);
    }
  }
}

/// `kDerived`: of ReLU6.
template <class Element, bool kVectors, bool kDerived>
__global__ void __launch_bounds__(kBlockThreads, kOutputBlocks)
    output_kernel(const Backward<Element> backward, const SplitTiles tiles, const DecodeMap* channels,
                  Element* output) {
  using Place = SplitPlace<Element, kVectors>;
  using Copies = PackedCopies<Element, kVectors>;
  Place place(tiles);
  const uint32_t linear = linear_channels(channels, place);
  const Way way = way_of<kDerived>(backward, linear);
  __shared__ ChannelTable<float2> maps;
  maps.load(place, [&](int64_t channel) { return make_float2(channels[channel].a, channels[channel].b); });
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    place.move(tile);
    const auto copies = Copies::template load<false>(backward, place);
    const auto derivatives = LaneDerivatives<kDerived>::load(backward, place);
    typename Place::Row y[kLaneRows];
    FiniteCheck check;
    const auto map_back = [&]<Way kWay>() {
      copies.template decode<kWay>(
          {}, derived_anew(linear), [&](int pair, int j, const bool(&side)[2], const float(&s)[2]) {
            float results[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const float2 map = maps[pair + i];
              const float scaled = map.x * s[i];
              const float z = scaled + map.y;
              if constexpr (kDerived) {
                results[i] = relu6_of_copy(z, side[i], derivatives(j, pair + i) != 0.0F);
              } else {
                // z of a split channel has the sign of its side.
                results[i] = kWay == Way::kSplitRelu ? z : activated(z, side[i], backward.slope);
              }
              check.add(results[i]);
            }
            y[j].set_pair(pair, results[0], results[1]);
            if constexpr (kWay == Way::kSplitRelu && !kDerived) {
              y[j].rectify_pair(pair);
            }
          });
    };
    if (way == Way::kSplitRelu) {
      map_back.template operator()<Way::kSplitRelu>();
    } else {
      map_back.template operator()<Way::kAny>();
    }
    if (!check.all_finite()) {
      make_nans_canonical(y);
    }
    place.store(y, output);
  }
}

}  // namespace

cudaError_t norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                                    void* grad_sum, cudaStream_t stream) {
  const bool vectors =
      has_vectors(backward.layout, backward.grad, backward.second_grad, backward.x, grad_input, grad_sum);
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    with_flags(
        [&]<bool kVectors, bool kSecond, bool kFromX, bool kSum, bool kDerived>() {
          if constexpr (kVectors || !(kSecond || kSum)) {
            const SplitTiles tiles =
                tiles_of_device(backward.layout, kGradientBlocks<Element, kVectors, kSecond, kFromX, kDerived>);
            if (tiles.blocks() != 0) {
              input_gradient_kernel<Element, kVectors, kSecond, kFromX, kSum, kDerived>
                  <<<tiles.blocks(), kBlockThreads, 0, stream>>>(Backward<Element>(backward), tiles, channels,
                                                                 static_cast<Element*>(grad_input),
                                                                 static_cast<Element*>(grad_sum));
            }
          }
        },
        vectors, vectors && backward.second_grad != nullptr, backward.x != nullptr, vectors && grad_sum != nullptr,
        has_derivatives(backward));
  });
  return cudaGetLastError();
}

cudaError_t norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, cudaStream_t stream) {
  const SplitTiles tiles = tiles_of_device(backward.layout, kOutputBlocks);
  if (tiles.blocks() == 0) {
    return cudaSuccess;
  }
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    with_flags(
        [&]<bool kVectors, bool kDerived>() {
          output_kernel<Element, kVectors, kDerived><<<tiles.blocks(), kBlockThreads, 0, stream>>>(
              Backward<Element>(backward), tiles, channels, static_cast<Element*>(y));
        },
        has_vectors(backward.layout, y), has_derivatives(backward));
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
