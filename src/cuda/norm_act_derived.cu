#include "actnn/core/activation.h"
#include "src/cuda/lane_packing.cuh"
#include "src/cuda/norm_act_derived.h"
#include "src/cuda/quantize_segment.cuh"
#include "src/cuda/split_tiles.cuh"

namespace actnn::cuda {
namespace {

/// As many of a multiprocessor as have the registers for a tile.
constexpr int kDerivedBlocks = 2;

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
  int bits;
  int derivative_bits;
  DerivativeEncoder encoder;
  bool keeps_below;
  bool stochastic;

  __device__ int planes() const { return bits + derivative_bits; }
};

/// The derivatives of a lane: those of smooth activations as values with noise of their own, those of ReLU6 as bits.
template <ActivationFunction kFunction>
class LaneDerivatives {
 public:
  template <class Element, class Place>
  __device__ LaneDerivatives(const Forward<Element>& forward, const RandomState& random, const Place& place) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      noise_[j] = forward.stochastic ? random.block(derivative_counter(place.counter(j))) : half_steps();
    }
  }

  __device__ void add(int j, int k, float derivative, const DerivativeEncoder& encoder) {
    add_value(values_, noise_[j], j, k, encoder.position(derivative));
  }
  __device__ void store(int bits, uint32_t existing, uint32_t* words) const {
    store_values(values_, bits + 1, existing, words);
  }

 private:
  LaneValues values_;
  PhiloxBlock noise_[kLaneRows];
};

template <>
class LaneDerivatives<ActivationFunction::kReLU6> {
 public:
  template <class Element, class Place>
  __device__ LaneDerivatives(const Forward<Element>& /*forward*/, const RandomState& /*random*/,
                             const Place& /*place*/) {}

  __device__ void add(int j, int k, float derivative, const DerivativeEncoder& /*encoder*/) {
    word_ |= derivative != 0.0F ? 1U << (j * kOctetChannels + k) : 0U;
  }
  __device__ void store(int /*bits*/, uint32_t existing, uint32_t* words) const { words[0] = word_ & existing; }

 private:
  uint32_t word_ = 0;
};

/// The values of a lane's copies; `split` and `linear`: all channels of the warp are of that kind.
template <class Element, class Place>
__device__ LaneValues encode_copies(const Forward<Element>& forward, const RandomState& random, const Place& place,
                                    const float (&copies)[kLaneRows][kOctet], uint32_t sides, uint32_t linear_channels,
                                    const SplitEncoder& encoder) {
  constexpr uint32_t kAll = (1U << kOctet) - 1;
  const auto encode = [&](auto&& position_of) { return encode_lane(place, random, forward.stochastic, position_of); };
  if (__all_sync(~0U, linear_channels == kAll)) {
    return encode([&](int j, int k) { return position_of_any(copies[j][k], /*side=*/true, /*linear=*/true, encoder); });
  }
  return encode([&](int j, int k) {
    return position_of_any(copies[j][k], is_above(sides, j, k), ((linear_channels >> k) & 1U) != 0, encoder);
  });
}

template <class Element, bool kVectors, bool kResidual, ActivationFunction kFunction>
__global__ void __launch_bounds__(kBlockThreads, kDerivedBlocks)
    derived_kernel(const Forward<Element> forward, const SplitTiles tiles, const Padding padding) {
  using Place = SplitPlace<Element, kVectors>;
  if (forward.planes() != 0) {
    padding.zero();
  }
  Place place(tiles);
  __shared__ ChannelTable<float4> maps;
  maps.load(place, [&](int64_t channel) {
    const NormActChannel& map = forward.channels[channel];
    return make_float4(map.z_scale, map.z_shift, map.s_scale, map.s_shift);
  });
  const uint32_t linear_of_thread = linear_channels(forward.channels, place);
  const bool split = __all_sync(~0U, linear_of_thread == 0);
  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    place.move(tile);
    typename Place::Row x[kLaneRows];
    typename Place::Row residual[kLaneRows];
    place.template load<true>(forward.x, x);
    if constexpr (kResidual) {
      place.template load<true>(forward.residual, residual);
    }
    // Loaded here, for round keys that live through the loop take registers that the elements need.
    const RandomState random = forward.random.load();
    const uint32_t linear = derived_anew(linear_of_thread);
    LaneDerivatives<kFunction> derivatives(forward, random, place);
    float copies[kLaneRows][kOctet];
    LaneSides sides_of_rows;
    SideMaxima maxima;
    FiniteCheck check;
    FiniteCheck check_of_results;
#pragma unroll
    for (int pair = 0; pair < kOctetChannels; pair += 2) {
      const float4 pair_maps[2] = {maps[pair], maps[pair + 1]};
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        float results[2];
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
          const ActivatedNumber result = activate<kFunction>(z);
          results[i] = result.y;
          check_of_results.add(result.y);
          derivatives.add(j, k, result.derivative, forward.encoder);
          sides_of_rows.add(j, k, z);
          const float scaled_copy = map.z * (((linear >> k) & 1U) != 0 ? input : z);
          const float s = scaled_copy + map.w;
          check.add(s);
          copies[j][k] = z > 0.0F || forward.keeps_below ? s : 0.0F;
        }
        maxima.add(copies[j][pair], copies[j][pair + 1]);
        x[j].set_pair(pair, results[0], results[1]);
      }
    }
    if (!check_of_results.all_finite()) {
      make_nans_canonical(x);
    }
    place.store(x, forward.y);
    if (forward.planes() == 0) {
      continue;
    }

    const uint32_t sides = sides_of_rows.word();
    SplitSteps steps{};
    LaneValues values;
    if (forward.bits != 0) {
      steps = maxima.steps(check.all_finite(), forward.keeps_below || !split, forward.bits, kTypeOf<Element>);
      const SplitEncoder encoder(steps, forward.bits, kTypeOf<Element>);
      values = encode_copies(forward, random, place, copies, sides, linear, encoder);
    }
    if (place.exists()) {
      if (threadIdx.x % kSplitLanes == 0) {
        forward.steps[place.group()] = steps;
      }
      uint32_t* words = words_of_lane(forward.words, place.group(), forward.planes());
      const uint32_t existing = place.existing();
      if (forward.bits != 0) {
        words[0] = sides & existing;
        store_values(values, forward.bits, existing, words + kSplitLanes);
      }
      derivatives.store(forward.derivative_bits, existing, words + forward.bits * kSplitLanes);
    }
  }
}

/// Calls `body.operator()<kFunction>()`.
template <class Body>
void with_function(ActivationFunction function, Body&& body) {
  using enum ActivationFunction;
  if (function == kReLU6) {
    body.template operator()<kReLU6>();
  } else if (function == kSiLU) {
    body.template operator()<kSiLU>();
  } else {
    body.template operator()<kHardswish>();
  }
}

}  // namespace

cudaError_t norm_act_derived(const NormActForward& forward, cudaStream_t stream) {
  const int64_t groups = forward.layout.groups();
  const Padding padding(forward.packed, groups);
  const SplitTiles tiles = tiles_of_device(forward.layout, kDerivedBlocks);
  with_element_type(forward.type, [&]<class Element>(Element /*tag*/) {
    const Forward<Element> arguments{.x = static_cast<const Element*>(forward.x),
                                     .residual = static_cast<const Element*>(forward.residual),
                                     .y = static_cast<Element*>(forward.y),
                                     .channels = forward.channels,
                                     .steps = reinterpret_cast<SplitSteps*>(forward.packed),
                                     .words = reinterpret_cast<uint32_t*>(forward.packed + codes_offset(groups)),
                                     .random = forward.random,
                                     .bits = forward.bits,
                                     .derivative_bits = forward.derivative.bits,
                                     .encoder = DerivativeEncoder(forward.derivative),
                                     .keeps_below = forward.keeps_below,
                                     .stochastic = forward.stochastic};
    with_function(forward.derivative.function, [&]<ActivationFunction kFunction>() {
      with_flags(
          [&]<bool kVectors, bool kResidual>() {
            derived_kernel<Element, kVectors, kResidual, kFunction>
                <<<tiles.blocks(), kBlockThreads, 0, stream>>>(arguments, tiles, padding);
          },
          has_vectors(forward.layout, forward.x, forward.residual, forward.y), forward.residual != nullptr);
    });
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
