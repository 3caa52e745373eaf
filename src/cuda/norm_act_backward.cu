#include "actnn/cuda/norm_act.h"
#include "src/cuda/channel_sums.cuh"
#include "src/cuda/split_tiles.cuh"

namespace actnn::cuda {
namespace {

/// Blocks of a multiprocessor, as many as have the registers for a tile.
template <class Element, bool kVectors, bool kSecond>
constexpr int kGradientBlocks = sizeof(Element) == sizeof(float) || !kVectors || kSecond ? 2 : 3;
constexpr int kOutputBlocks = 3;

/// Arguments of the kernels.
template <class Element>
struct Backward {
  const SplitSteps* steps;
  const uint32_t* words;
  const Element* grad;
  const Element* second_grad;
  float slope;
  int bits;

  explicit Backward(const NormActBackward& backward)
      : steps(reinterpret_cast<const SplitSteps*>(backward.packed)),
        words(reinterpret_cast<const uint32_t*>(backward.packed + codes_offset(backward.layout.groups()))),
        grad(static_cast<const Element*>(backward.grad)),
        second_grad(static_cast<const Element*>(backward.second_grad)),
        slope(backward.slope),
        bits(backward.bits) {}
};

/// The packed copies of a lane: loaded first, decoded when all loads of a tile are on their way.
class LaneCopies {
 public:
  template <class Element, class Place>
  __device__ LaneCopies(const Backward<Element>& backward, const Place& place) : steps_(backward.steps[place.group()]) {
    const uint32_t* words = words_of_lane(backward.words, place.group(), backward.bits);
    sides_ = words[0];
    for_each_plane(backward.bits, [&]<int plane>() { planes_[plane] = words[(plane + 1) * kSplitLanes]; });
  }

  /// Calls `body(pair, j, side, s)` for the rows of each pair of channels, with the sides and copies of both channels.
  template <class Element, class Body>
  __device__ void decode(int bits, uint32_t linear, Element /*tag*/, Body&& body) const {
    LaneValues values;
    for_each_plane(bits, [&]<int plane>() { values.add_plane<plane>(planes_[plane]); });
    const SplitGrid grid(steps_, bits, kTypeOf<Element>);
#pragma unroll
    for (int pair = 0; pair < kOctetChannels; pair += 2) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        bool side[2];
        float s[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          side[i] = ((sides_ >> (j * kOctetChannels + pair + i)) & 1U) != 0;
          // The byte in the mantissa of 2^23: conversions are slow.
          const uint32_t mantissa = __byte_perm(values.channel[pair + i], bits_of(kIntegerInMantissa), 0x7650 + j);
          const float value = float_of(mantissa) - kIntegerInMantissa;
          s[i] = grid.copy_at(side[i], value, ((linear >> (pair + i)) & 1U) != 0);
        }
        body(pair, j, side, s);
      }
    }
  }

 private:
  SplitSteps steps_;
  uint32_t sides_;
  uint32_t planes_[kMaxBits - 1];
};

template <class Element, bool kVectors, bool kSecond>
__global__ void __launch_bounds__(kBlockThreads, kGradientBlocks<Element, kVectors, kSecond>)
    sums_kernel(const Backward<Element> backward, const SplitTiles tiles, const NormActInverse* channels,
                const PartialSums partial) {
  using Place = SplitPlace<Element, kVectors>;
  __shared__ WarpSums of_warps;
  Place place(tiles);
  const uint32_t linear = linear_channels(channels, place);
  ThreadSums sums;
  // Backwards, so that the next kernel, which begins at the front, meets what is still in the cache.
  const int64_t steps = ceil_div(tiles.tiles - tiles.part(), tiles.parts);
  for (int64_t step = steps - 1; step >= 0; --step) {
    place.move(tiles.part() + step * tiles.parts);
    typename Place::Row grad[kLaneRows];
    typename Place::Row second[kLaneRows];
    place.template load<false>(backward.grad, grad);
    if constexpr (kSecond) {
      place.template load<false>(backward.second_grad, second);
    }
    const LaneCopies copies(backward, place);
    copies.decode(backward.bits, derived_anew(linear), Element{},
                  [&](int pair, int j, const bool(&side)[2], const float(&s)[2]) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                      float gradient = grad[j][pair + i];
                      if constexpr (kSecond) {
                        gradient = gradient + second[j][pair + i];
                      }
                      const float dz = activation_gradient(gradient, side[i], backward.slope);
                      if (j < place.rows()) {
                        sums.first[pair + i] += dz;
                        sums.second[pair + i] = __fmaf_rn(dz, s[i], sums.second[pair + i]);
                      }
                    }
                  });
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

__global__ void __launch_bounds__(kBlockThreads)
    join_sums_kernel(const PartialSums partial, float* sums, float* copy_sums) {
  const SliceSums all =
      add_up_parts(partial.parts, partial.channels, [&](int64_t part, int64_t channel, SliceSums& of_slice) {
        of_slice.first += partial.first(part, channel);
        of_slice.second += partial.second(part, channel);
      });
  const int64_t channel = int64_t{blockIdx.x} * kSlicedChannels + threadIdx.x;
  if (threadIdx.x < kSlicedChannels && channel < partial.channels) {
    sums[channel] = static_cast<float>(all.first);
    copy_sums[channel] = static_cast<float>(all.second);
  }
}

template <class Element, bool kVectors, bool kSecond>
__global__ void __launch_bounds__(kBlockThreads, kGradientBlocks<Element, kVectors, kSecond>)
    input_gradient_kernel(const Backward<Element> backward, const SplitTiles tiles, const NormActGradient* channels,
                          Element* grad_input) {
  using Place = SplitPlace<Element, kVectors>;
  Place place(tiles);
  const uint32_t linear = linear_channels(channels, place);
  __shared__ ChannelTable maps;
  maps.load(place, [&](int64_t channel) {
    const NormActGradient& map = channels[channel];
    return make_float4(map.scale, map.of_copy, map.shift, 0.0F);
  });
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    place.move(tile);
    typename Place::Row grad[kLaneRows];
    typename Place::Row second[kLaneRows];
    place.template load<true>(backward.grad, grad);
    if constexpr (kSecond) {
      place.template load<true>(backward.second_grad, second);
    }
    const LaneCopies copies(backward, place);
    copies.decode(backward.bits, derived_anew(linear), Element{},
                  [&](int pair, int j, const bool(&side)[2], const float(&s)[2]) {
                    float results[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                      float gradient = grad[j][pair + i];
                      if constexpr (kSecond) {
                        gradient = gradient + second[j][pair + i];
                      }
                      const float4 map = maps[pair + i];
                      const float of_gradient = map.x * activation_gradient(gradient, side[i], backward.slope);
                      const float of_copy = map.y * s[i];
                      const float sum = of_gradient + of_copy;
                      results[i] = sum + map.z;
                    }
                    grad[j].set_pair(pair, results[0], results[1]);
                  });
    place.store(grad, grad_input);
  }
}

template <class Element, bool kVectors>
__global__ void __launch_bounds__(kBlockThreads, kOutputBlocks)
    output_kernel(const Backward<Element> backward, const SplitTiles tiles, const NormActInverse* channels,
                  Element* output) {
  using Place = SplitPlace<Element, kVectors>;
  Place place(tiles);
  const uint32_t linear = linear_channels(channels, place);
  __shared__ ChannelTable maps;
  maps.load(place, [&](int64_t channel) { return make_float4(channels[channel].a, channels[channel].b, 0.0F, 0.0F); });
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    place.move(tile);
    const LaneCopies copies(backward, place);
    typename Place::Row y[kLaneRows];
    copies.decode(backward.bits, derived_anew(linear), Element{},
                  [&](int pair, int j, const bool(&side)[2], const float(&s)[2]) {
                    float results[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                      const float4 map = maps[pair + i];
                      const float scaled = map.x * s[i];
                      results[i] = activated(scaled + map.y, side[i], backward.slope);
                    }
                    y[j].set_pair(pair, results[0], results[1]);
                  });
    place.store(y, output);
  }
}

}  // namespace

cudaError_t norm_act_sums(const NormActBackward& backward, const NormActInverse* channels, float* scratch, float* sums,
                          float* copy_sums, cudaStream_t stream) {
  const SplitLayout<int64_t>& layout = backward.layout;
  if (layout.channels == 0) {
    return cudaSuccess;
  }
  const SplitTiles tiles = tiles_of_sums(layout);
  const PartialSums partial{scratch, tiles.parts, layout.channels};
  if (tiles.parts != 0) {
    const bool vectors = has_vectors(layout, backward.grad, backward.second_grad);
    with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
      const auto kernel = backward.second_grad
                              ? (vectors ? sums_kernel<Element, true, true> : sums_kernel<Element, false, true>)
                              : (vectors ? sums_kernel<Element, true, false> : sums_kernel<Element, false, false>);
      kernel<<<tiles.blocks(), kBlockThreads, 0, stream>>>(Backward<Element>(backward), tiles, channels, partial);
    });
  }
  join_sums_kernel<<<blocks_for(layout.channels, kSlicedChannels), kBlockThreads, 0, stream>>>(partial, sums,
                                                                                               copy_sums);
  return cudaGetLastError();
}

cudaError_t norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                                    cudaStream_t stream) {
  const bool vectors = has_vectors(backward.layout, backward.grad, backward.second_grad, grad_input);
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    const auto launch = [&]<bool kVectors, bool kSecond>() {
      const SplitTiles tiles = tiles_of_device(backward.layout, kGradientBlocks<Element, kVectors, kSecond>);
      if (tiles.blocks() != 0) {
        input_gradient_kernel<Element, kVectors, kSecond><<<tiles.blocks(), kBlockThreads, 0, stream>>>(
            Backward<Element>(backward), tiles, channels, static_cast<Element*>(grad_input));
      }
    };
    if (backward.second_grad) {
      vectors ? launch.template operator()<true, true>() : launch.template operator()<false, true>();
    } else {
      vectors ? launch.template operator()<true, false>() : launch.template operator()<false, false>();
    }
  });
  return cudaGetLastError();
}

cudaError_t norm_act_output(const NormActBackward& backward, const NormActInverse* channels, void* y,
                            cudaStream_t stream) {
  const SplitTiles tiles = tiles_of_device(backward.layout, kOutputBlocks);
  if (tiles.blocks() == 0) {
    return cudaSuccess;
  }
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    const auto kernel = has_vectors(backward.layout, y) ? output_kernel<Element, true> : output_kernel<Element, false>;
    kernel<<<tiles.blocks(), kBlockThreads, 0, stream>>>(Backward<Element>(backward), tiles, channels,
                                                         static_cast<Element*>(y));
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
