#include "actnn/cuda/norm_act.h"
#include "src/cuda/octet.cuh"
#include "src/cuda/quantize_segment.cuh"
#include "src/cuda/split_tiles.cuh"

namespace actnn::cuda {
namespace {

constexpr int kForwardBlocks = 2;  ///< of a multiprocessor

/// Arguments of the kernel.
template <class Element>
struct Forward {
  const Element* x;
  const Element* residual;
  Element* y;
  const NormActChannel* channels;
  SplitSteps* steps;
  uint32_t* words;
  RandomSource random;
  float slope;
  int bits;
  bool keeps_below;
  bool stochastic;
};

/// What a group's steps are chosen by.
struct SideMaxima {
  float above = 0.0F;
  float below = 0.0F;
  float magnitude = 0.0F;  ///< of all copies, wanted or not

  /// Over the group; infinite if a copy is not finite.
  __device__ void reduce() {
    above = is_finite(magnitude) ? above : float_of(kInfinityFloat32);
#pragma unroll
    for (int distance = kSplitLanes / 2; distance > 0; distance /= 2) {
      above = fmaxf(above, __shfl_xor_sync(~0U, above, distance));
      below = fmaxf(below, __shfl_xor_sync(~0U, below, distance));
    }
  }
};

/// Row j's part of a lane's values: `SplitEncoder::encode` for 8 copies, with few instructions. A limit in units of 2^-16 of a
/// step, before noise is added, is one of values too.
template <bool kAnyLinear>
__device__ void encode_row(const float (&copies)[kOctet], uint32_t sides, int j, const SplitEncoder& encoder,
                           uint32_t linear, const PhiloxBlock& noise, LaneValues& values) {
  const auto most = static_cast<float>(encoder.highest << 16);
#pragma unroll
  for (int k = 0; k < kOctetChannels; ++k) {
    const bool side = ((sides >> (j * kOctetChannels + k)) & 1U) != 0;
    float units = copies[k] * (side ? encoder.above : -encoder.below);
    if (kAnyLinear && ((linear >> k) & 1U) != 0) {
      units = (copies[k] - encoder.grid.lowest) * encoder.linear;
    }
    const float position = fminf(fmaxf(units, 0.0F), most) + kIntegerInMantissa;
    // One instruction selects a half of a word of noise and adds it; the value is then in byte 2.
    const uint32_t half = k % 2 == 0 ? 0x0001U : 0x0100U;
    const uint32_t noisy = __dp2a_lo(noise.word[k / 2], half, bits_of(position));
    const uint32_t selector = 0x3210U + ((6U - j) << (4 * j));
    values.channel[k] = __byte_perm(values.channel[k], noisy, selector);
  }
}

template <class Element, bool kVectors, bool kResidual>
__global__ void __launch_bounds__(kBlockThreads, kForwardBlocks)
    norm_act_kernel(const Forward<Element> forward, const SplitTiles tiles, const Padding padding) {
  using Place = SplitPlace<Element, kVectors>;
  if (forward.bits != 0) {
    padding.zero();
  }
  Place place(tiles);
  __shared__ ChannelTable<float4> maps;
  maps.load(place, [&](int64_t channel) {
    const NormActChannel& map = forward.channels[channel];
    return make_float4(map.z_scale, map.z_shift, map.s_scale, map.s_shift);
  });
  const uint32_t linear_of_thread = linear_channels(forward.channels, place);
  const bool keeps_below = forward.keeps_below;

  typename Place::Row x[kLaneRows];
  typename Place::Row residual[kLaneRows];
  const auto load = [&](int64_t tile) {
    place.move(tile);
    place.template load<true>(forward.x, x);
    if constexpr (kResidual) {
      place.template load<true>(forward.residual, residual);
    }
  };
  // While the copies of a tile are packed, the next one is in flight where there are registers for it.
  constexpr bool kAhead = kVectors && sizeof(Element) == 2;
  if (kAhead) {
    load(tiles.part());
  }
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    if (!kAhead) {
      load(tile);
    }
    const uint32_t linear = derived_anew(linear_of_thread);
    float copies[kLaneRows][kOctet];
    typename Place::Row y[kLaneRows];
    uint32_t sides = 0;
    SideMaxima maxima;
#pragma unroll
    for (int pair = 0; pair < kOctetChannels; pair += 2) {
      const float4 pair_maps[2] = {maps[pair], maps[pair + 1]};
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        float results[2];
#pragma unroll
        for (int k = pair; k < pair + 2; ++k) {
          const float4 map = pair_maps[k - pair];
          const float input = x[j][k];
          const float scaled = map.x * input;
          float z = scaled + map.y;
          if constexpr (kResidual) {
            z = z + residual[j][k];
          }
          const bool side = z > 0.0F;
          results[k - pair] = activated(z, side, forward.slope);
          const float scaled_copy = map.z * (((linear >> k) & 1U) != 0 ? input : z);
          float s = scaled_copy + map.w;
          maxima.magnitude = max_or_nan(maxima.magnitude, fabsf(s));
          s = side || keeps_below ? s : 0.0F;
          maxima.above = fmaxf(maxima.above, s);
          maxima.below = fmaxf(maxima.below, -s);
          sides |= side ? 1U << (j * kOctetChannels + k) : 0U;
          copies[j][k] = s;
        }
        y[j].set_pair(pair, results[0], results[1]);
      }
      sides = derived_anew(sides);  // now, and not of the comparisons of all pairs in the end
    }
    make_nans_canonical(y);
    place.store(y, forward.y);
    // Loaded here, for round keys that live through the loop take registers that the elements need.
    const RandomState random = forward.random.load();
    const Place here = place;
    if (kAhead && tile + tiles.parts < tiles.tiles) {
      load(tile + tiles.parts);
    }
    if (forward.bits == 0) {
      continue;
    }

    maxima.reduce();
    const SplitSteps steps = split_steps(maxima.above, maxima.below, forward.bits, kTypeOf<Element>);
    const SplitEncoder encoder(steps, forward.bits, kTypeOf<Element>);
    LaneValues values;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      constexpr uint32_t kHalves = both_halves(half_step(kMinBits));
      PhiloxBlock noise{{kHalves, kHalves, kHalves, kHalves}};
      if (forward.stochastic) {
        noise = random.block(here.counter(j));
      }
      if (linear == 0) {
        encode_row<false>(copies[j], sides, j, encoder, linear, noise, values);
      } else {
        encode_row<true>(copies[j], sides, j, encoder, linear, noise, values);
      }
    }
    if (here.exists()) {
      if (threadIdx.x % kSplitLanes == 0) {
        forward.steps[here.group()] = steps;
      }
      uint32_t* words = words_of_lane(forward.words, here.group(), forward.bits);
      const uint32_t existing = here.existing();
      words[0] = sides & existing;
      for_each_plane(forward.bits,
                     [&]<int plane>() { words[(plane + 1) * kSplitLanes] = values.plane_word<plane>() & existing; });
    }
  }
}

}  // namespace

cudaError_t norm_act(const NormActForward& forward, cudaStream_t stream) {
  const SplitTiles tiles = tiles_of_device(forward.layout, kForwardBlocks);
  if (tiles.blocks() == 0) {
    return cudaSuccess;
  }
  const int64_t groups = forward.layout.groups();
  const Padding padding(forward.packed, groups);
  const bool vectors = has_vectors(forward.layout, forward.x, forward.residual, forward.y);
  with_element_type(forward.type, [&]<class Element>(Element /*tag*/) {
    const Forward<Element> arguments{.x = static_cast<const Element*>(forward.x),
                                     .residual = static_cast<const Element*>(forward.residual),
                                     .y = static_cast<Element*>(forward.y),
                                     .channels = forward.channels,
                                     .steps = reinterpret_cast<SplitSteps*>(forward.packed),
                                     .words = reinterpret_cast<uint32_t*>(forward.packed + codes_offset(groups)),
                                     .random = forward.random,
                                     .slope = forward.slope,
                                     .bits = forward.bits,
                                     .keeps_below = forward.keeps_below,
                                     .stochastic = forward.stochastic};
    const auto kernel =
        vectors ? (forward.residual ? norm_act_kernel<Element, true, true> : norm_act_kernel<Element, true, false>)
                : (forward.residual ? norm_act_kernel<Element, false, true> : norm_act_kernel<Element, false, false>);
    kernel<<<tiles.blocks(), kBlockThreads, 0, stream>>>(arguments, tiles, padding);
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
