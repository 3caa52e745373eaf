#include <type_traits>

#include "actnn/cuda/norm_act.h"
#include "src/cuda/lane_packing.cuh"
#include "src/cuda/norm_act_derived.h"
#include "src/cuda/quantize_segment.cuh"
#include "src/cuda/split_tiles.cuh"

namespace actnn::cuda {
namespace {

/// What hides the loads of a tile where there are registers for it: the packing of the tile before, or else the tiles
/// of a third block of the multiprocessor.
constexpr bool kPrefetch = true;
template <class Element, bool kVectors>
constexpr bool kHasRegisters = kVectors && sizeof(Element) < sizeof(float);
template <class Element, bool kVectors>
constexpr int kForwardBlocks = !kPrefetch && kHasRegisters<Element, kVectors> ? 3 : 2;

/// Where copies of the normalized input go.
struct Normalized {
  const NormActChannel* channels;
  SplitSteps* steps;
  uint32_t* words;
  RandomSource random;
  int bits;
  Padding padding;

  Normalized(const NormalizedPacking& packing, int64_t groups)
      : channels(packing.channels),
        steps(reinterpret_cast<SplitSteps*>(packing.packed)),
        words(reinterpret_cast<uint32_t*>(packing.packed + codes_offset(groups))),
        random(packing.random),
        bits(packing.bits),
        padding(packing.packed, groups) {}
};

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

struct Nothing {};

/// What a pass over a lane's elements does.
enum class Pass {
  kOutputOnly,  ///< nothing is saved
  kSplitRelu,   ///< all channels of the warp are split, and y is 0 below the kink
  kAny
};

/// Packs copies of the normalized input. They are computed twice, for the steps and for the values, and the
/// elements of x are what stays in registers.
template <class Element, class Place>
__device__ void pack_normalized(const Normalized& normalized, const ChannelTable<float2>& maps, const Place& place,
                                typename Place::Row (&x)[kLaneRows], bool stochastic) {
  const auto copy_of = [&](const typename Place::Row& row, int k) {
    const float2 map = maps[k];
    const float scaled = map.x * row[k];
    return scaled + map.y;
  };
  SideMaxima maxima;
  FiniteCheck check;
#pragma unroll
  for (int pair = 0; pair < kOctetChannels; pair += 2) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const float s[2] = {copy_of(x[j], pair), copy_of(x[j], pair + 1)};
      maxima.add(s[0], s[1]);
      check.add(s[0]);
      check.add(s[1]);
    }
  }
  const int bits = split_bits(normalized.bits);
  const SplitSteps steps = maxima.steps(check.all_finite(), /*keeps_below=*/true, bits, kTypeOf<Element>);
  const SplitEncoder encoder(steps, bits, kTypeOf<Element>);
  derive_anew(x);
  const LaneValues values = encode_lane(place, normalized.random.load(), stochastic, [&](int j, int k) {
    return position_of_any(copy_of(x[j], k), /*side=*/true, /*linear=*/true, encoder);
  });
  derive_anew(x);
  if (place.exists()) {
    if (threadIdx.x % kSplitLanes == 0) {
      normalized.steps[place.group()] = steps;
    }
    store_values(values, bits, place.existing(), words_of_lane(normalized.words, place.group(), normalized.bits));
  }
}

/// `kNormalized`: packs copies of the normalized input too.
template <class Element, bool kVectors, bool kResidual, bool kNormalized>
__global__ void __launch_bounds__(kBlockThreads, kForwardBlocks<Element, kVectors>)
    norm_act_kernel(const Forward<Element> forward, const Normalized normalized, const SplitTiles tiles,
                    const Padding padding) {
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
  __shared__ std::conditional_t<kNormalized, ChannelTable<float2>, Nothing> normalized_maps;
  if constexpr (kNormalized) {
    normalized.padding.zero();
    normalized_maps.load(place, [&](int64_t channel) {
      const NormActChannel& map = normalized.channels[channel];
      return make_float2(map.s_scale, map.s_shift);
    });
  }
  const uint32_t linear_of_thread = linear_channels(forward.channels, place);
  const bool split = __all_sync(~0U, linear_of_thread == 0);

  typename Place::Row x[kLaneRows];
  typename Place::Row residual[kLaneRows];
  const auto load = [&](int64_t tile) {
    place.move(tile);
    place.template load<true>(forward.x, x);
    if constexpr (kResidual) {
      place.template load<true>(forward.residual, residual);
    }
  };
  constexpr bool kAhead = kPrefetch && kHasRegisters<Element, kVectors>;
  if (kAhead) {
    load(tiles.part());
  }
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    if (!kAhead) {
      load(tile);
    }
    if constexpr (kNormalized) {
      pack_normalized<Element>(normalized, normalized_maps, place, x, forward.stochastic);
    }
    const uint32_t linear = derived_anew(linear_of_thread);
    float copies[kLaneRows][kOctet];
    typename Place::Row y[kLaneRows];
    LaneSides sides_of_rows;
    SideMaxima maxima;
    FiniteCheck check;
    const auto pass = [&]<Pass kPass>() {
#pragma unroll
      for (int pair = 0; pair < kOctetChannels; pair += 2) {
        const float4 pair_maps[2] = {maps[pair], maps[pair + 1]};
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) {
          float results[2];
          float s[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int k = pair + i;
            const float4 map = pair_maps[i];
            const float input = x[j][k];
            const float scaled = map.x * input;
            float z = scaled + map.y;
            if constexpr (kResidual) {
              z = z + residual[j][k];
            }
            const bool side = z > 0.0F;
            results[i] = kPass == Pass::kSplitRelu ? z : activated(z, side, forward.slope);
            if constexpr (kPass == Pass::kOutputOnly) {
              check.add(results[i]);
              continue;
            }
            sides_of_rows.add(j, k, z);
            if constexpr (kPass == Pass::kSplitRelu) {
              s[i] = map.z * z;
              check.add(s[i]);
            } else {
              const float scaled_copy = map.z * (((linear >> k) & 1U) != 0 ? input : z);
              s[i] = scaled_copy + map.w;
              check.add(s[i]);
              s[i] = side || forward.keeps_below ? s[i] : 0.0F;
            }
            copies[j][k] = s[i];
          }
          if constexpr (kPass != Pass::kOutputOnly) {
            maxima.add(s[0], s[1]);
          }
          y[j].set_pair(pair, results[0], results[1]);
          if constexpr (kPass == Pass::kSplitRelu) {
            y[j].rectify_pair(pair);
          }
        }
      }
      if (kPass == Pass::kAny || !check.all_finite()) {
        make_nans_canonical(y);
      }
    };
    if (forward.bits == 0) {
      pass.template operator()<Pass::kOutputOnly>();
    } else if (split && forward.slope == 0.0F) {
      pass.template operator()<Pass::kSplitRelu>();
    } else {
      pass.template operator()<Pass::kAny>();
    }
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

    const uint32_t sides = sides_of_rows.word();
    const SplitSteps steps =
        maxima.steps(check.all_finite(), forward.keeps_below || !split, forward.bits, kTypeOf<Element>);
    const SplitEncoder encoder(steps, forward.bits, kTypeOf<Element>);
    LaneValues values;
    const auto encode = [&](auto&& position_of) {
      values = encode_lane(here, random, forward.stochastic, position_of);
    };
    if (split && PositionOnSide::is_exact(encoder.grid)) {
      const PositionOnSide position(encoder);
      if (forward.keeps_below) {
        encode([&](int j, int k) { return position.template operator()<true>(copies[j][k]); });
      } else {
        encode([&](int j, int k) { return position.template operator()<false>(copies[j][k]); });
      }
    } else {
      encode([&](int j, int k) {
        return position_of_any(copies[j][k], is_above(sides, j, k), ((linear >> k) & 1U) != 0, encoder);
      });
    }
    if (here.exists()) {
      if (threadIdx.x % kSplitLanes == 0) {
        forward.steps[here.group()] = steps;
      }
      uint32_t* words = words_of_lane(forward.words, here.group(), forward.bits);
      const uint32_t existing = here.existing();
      words[0] = sides & existing;
      store_values(values, forward.bits, existing, words + kSplitLanes);
    }
  }
}

}  // namespace

cudaError_t norm_act(const NormActForward& forward, cudaStream_t stream) {
  const int64_t groups = forward.layout.groups();
  if (groups == 0) {
    return cudaSuccess;
  }
  if (forward.derivative.function != ActivationFunction::kLeakyReLU) {
    return norm_act_derived(forward, stream);
  }
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
    const Normalized normalized(forward.normalized, groups);
    const auto launch = [&]<bool kVectors, bool kResidual, bool kNormalized>() {
      const SplitTiles tiles = tiles_of_device(forward.layout, kForwardBlocks<Element, kVectors>);
      norm_act_kernel<Element, kVectors, kResidual, kNormalized>
          <<<tiles.blocks(), kBlockThreads, 0, stream>>>(arguments, normalized, tiles, padding);
    };
    with_flags(
        [&]<bool kVectors>() {
          if (!forward.residual) {
            launch.template operator()<kVectors, false, false>();
          } else if (forward.normalized.bits == 0) {
            launch.template operator()<kVectors, true, false>();
          } else {
            launch.template operator()<kVectors, true, true>();
          }
        },
        vectors);
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
