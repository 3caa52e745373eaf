#include "actnn/cuda/norm_act.h"
#include "src/cuda/quantize_segment.cuh"
#include "src/cuda/split_tiles.cuh"

namespace actnn::cuda {
namespace {

/// What hides the loads of a tile where there are registers for it: the packing of the tile before, or else the tiles of a third
/// block of the multiprocessor.
constexpr bool kPrefetch = true;
template <class Element, bool kVectors>
constexpr bool kHasRegisters = kVectors && sizeof(Element) < sizeof(float);
template <class Element, bool kVectors>
constexpr int kForwardBlocks = !kPrefetch && kHasRegisters<Element, kVectors> ? 3 : 2;

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

/// What a pass over a lane's elements does.
enum class Pass {
  kOutputOnly,  ///< nothing is kept
  kSplitRelu,   ///< all channels of the warp are split, and y is 0 below the bend
  kAny
};

/// What a group's steps are chosen by. As integers, numbers above 0 are in their order; as unsigned ones, those below 0 are larger
/// than all others, in the order of their magnitudes. An instruction finds the largest of three.
class SideMaxima {
 public:
  __device__ void add(float first, float second) {
    above_ = __vimax3_s32(above_, static_cast<int>(bits_of(first)), static_cast<int>(bits_of(second)));
    below_ = __vimax3_u32(below_, bits_of(first), bits_of(second));
  }

  /// The steps of the group; NaN if a copy is not finite. `keeps_below`: false if what is below 0 counts as 0.
  __device__ SplitSteps steps(bool finite, bool keeps_below, int bits, ElementType type) const {
    int above = finite ? above_ : static_cast<int>(kInfinityFloat32);
    int below = keeps_below ? static_cast<int>(max(below_, kSign) - kSign) : 0;
#pragma unroll
    for (int distance = kSplitLanes / 2; distance > 0; distance /= 2) {
      above = max(above, __shfl_xor_sync(~0U, above, distance));
      below = max(below, __shfl_xor_sync(~0U, below, distance));
    }
    return split_steps(float_of(static_cast<uint32_t>(above)), float_of(static_cast<uint32_t>(below)), bits, type);
  }

 private:
  static constexpr uint32_t kSign = 0x80000000;

  int above_ = 0;
  uint32_t below_ = 0;
};

/// Plane 0 of a lane. A row's bits are added up in the mantissa of a float: multiply-adds have arithmetic units to spare.
class LaneSides {
 public:
  __device__ void add(int j, int k, float z) {
    float above;
    asm("set.gt.f32.f32 %0, %1, 0f00000000;" : "=f"(above) : "f"(z));
    rows_[j] = __fmaf_rn(above, static_cast<float>(1U << k), rows_[j]);
  }

  __device__ uint32_t word() const {
    const uint32_t first = __byte_perm(bits_of(rows_[0]), bits_of(rows_[1]), 0x0040);
    const uint32_t second = __byte_perm(bits_of(rows_[2]), bits_of(rows_[3]), 0x0040);
    return __byte_perm(first, second, 0x5410);
  }

 private:
  static_assert(kLaneRows == 4);
  float rows_[kLaneRows] = {kIntegerInMantissa, kIntegerInMantissa, kIntegerInMantissa, kIntegerInMantissa};
};

/// `SplitEncoder::encode` of split channels with few instructions, for steps up to `kMostStep`. Positions are fractions of 2^23, of
/// which a saturating multiplication makes 0 on the other side of the bend. No limit is needed: steps are rounded up, so that no
/// copy is farther away than the highest value, and what a product exceeds it by is rounded away.
class PositionOnSide {
 public:
  static constexpr float kMostStep = 0x1p119F;  ///< more has fractions of a unit that are not normal numbers

  __device__ explicit PositionOnSide(const SplitEncoder& encoder)
      : above_(encoder.above / kIntegerInMantissa), below_(-encoder.below / kIntegerInMantissa) {}

  __device__ static bool is_exact(const SplitGrid& grid) { return fmaxf(grid.above, grid.below) <= kMostStep; }

  template <bool kBelow>
  __device__ uint32_t operator()(float s) const {
    float position = __fmaf_rn(__saturatef(s * above_), kIntegerInMantissa, kIntegerInMantissa);
    if constexpr (kBelow) {
      position = __fmaf_rn(__saturatef(s * below_), kIntegerInMantissa, position);
    }
    return bits_of(position);
  }

 private:
  float above_;
  float below_;
};

/// The same for channels of any kind. A limit in units of 2^-16 of a step, before noise is added, is one of values too.
__device__ inline uint32_t position_of_any(float s, bool side, bool linear, const SplitEncoder& encoder) {
  const float units = linear ? (s - encoder.grid.lowest) * encoder.linear : s * (side ? encoder.above : -encoder.below);
  const auto most = static_cast<float>(encoder.highest << 16);
  return bits_of(fminf(fmaxf(units, 0.0F), most) + kIntegerInMantissa);
}

template <class Element, bool kVectors, bool kResidual>
__global__ void __launch_bounds__(kBlockThreads, kForwardBlocks<Element, kVectors>)
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
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        constexpr uint32_t kHalves = both_halves(half_step(kMinBits));
        PhiloxBlock noise{{kHalves, kHalves, kHalves, kHalves}};
        if (forward.stochastic) {
          noise = random.block(here.counter(j));
        }
#pragma unroll
        for (int k = 0; k < kOctetChannels; ++k) {
          // One instruction selects a half of a word of noise and adds it; the value is then in byte 2.
          const uint32_t half = k % 2 == 0 ? 0x0001U : 0x0100U;
          const uint32_t noisy = __dp2a_lo(noise.word[k / 2], half, position_of(j, k));
          const uint32_t selector = 0x3210U + ((6U - j) << (4 * j));
          values.channel[k] = __byte_perm(values.channel[k], noisy, selector);
        }
      }
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
      for_each_plane(forward.bits,
                     [&]<int plane>() { words[(plane + 1) * kSplitLanes] = values.plane_word<plane>() & existing; });
    }
  }
}

}  // namespace

cudaError_t norm_act(const NormActForward& forward, cudaStream_t stream) {
  const int64_t groups = forward.layout.groups();
  if (groups == 0) {
    return cudaSuccess;
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
    with_flags(
        [&]<bool kVectors, bool kResidual>() {
          const SplitTiles tiles = tiles_of_device(forward.layout, kForwardBlocks<Element, kVectors>);
          norm_act_kernel<Element, kVectors, kResidual>
              <<<tiles.blocks(), kBlockThreads, 0, stream>>>(arguments, tiles, padding);
        },
        vectors, forward.residual != nullptr);
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
