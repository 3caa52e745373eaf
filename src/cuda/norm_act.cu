#include <cuda_pipeline.h>

#include "actnn/cuda/norm_act.h"
#include "src/cuda/column_packing.cuh"
#include "src/cuda/row_stage.cuh"

namespace actnn::cuda {
namespace {

/// Threads of a multiprocessor that have the registers for a tile. While one block packs, others load.
template <class Element, bool kVectors, bool kResidual>
constexpr int kForwardThreads = kVectors && !kResidual ? 768 : 512;

/// Arguments of the kernel.
template <class Element>
struct Forward {
  const Element* x;
  const Element* residual;
  Element* y;
  const NormActChannel* channels;
  float slope;
  bool keeps_below;
  ColumnTarget target;
  const NormActChannel* normalized_channels;
  ColumnTarget normalized;
};

/// What the extremes of a tile are of: elements of x, or sums with the residual.
template <class Element, bool kResidual>
using ExtremeOf = std::conditional_t<kResidual, float, Element>;

/// Shared memory of a block, in bytes.
struct ForwardMemory {
  int rows;  ///< of a matrix
  int ranges;
  int codes;
  int mask;
  int normalized_ranges;
  int normalized_codes;

  template <class Element, class Place, bool kResidual>
  static ForwardMemory of(const ColumnTiles& tiles, const ColumnTarget& target, const ColumnTarget& normalized) {
    using Ranges = ColumnRanges<Element, ExtremeOf<Element, kResidual>, Place>;
    using NormalizedRanges = ColumnRanges<Element, Element, Place>;
    const bool has_codes = target.layout.bits != 0;
    const bool has_normalized = normalized.layout.bits != 0;
    return {.rows = static_cast<int>(tiles.threads()) / kWarp * RowStage<Place>::kBytes,
            .ranges = has_codes ? Ranges::bytes(tiles, target.layout.group_rows) : 0,
            .codes = has_codes ? Slots::bytes_of_codes(tiles, target.layout.bits) : 0,
            .mask = Slots::bytes_of_mask(tiles),
            .normalized_ranges = has_normalized ? NormalizedRanges::bytes(tiles, normalized.layout.group_rows) : 0,
            .normalized_codes = has_normalized ? Slots::bytes_of_codes(tiles, normalized.layout.bits) : 0};
  }

  int bytes(bool has_residual, int masks) const {
    return rows * (has_residual ? 2 : 1) + ranges + codes + masks * mask + normalized_ranges + normalized_codes;
  }
};

/// The next bytes of shared memory.
class SharedMemory {
 public:
  __device__ explicit SharedMemory(uint4* memory) : next_(reinterpret_cast<uint8_t*>(memory)) {}
  __device__ uint8_t* take(int bytes) {
    uint8_t* const taken = next_;
    next_ += bytes;
    return taken;
  }

 private:
  uint8_t* next_;
};

/// y of an element; a ReLU's is z, and is rectified when it is rounded.
template <ActivationFunction kFunction, Below kBelow>
__device__ float output_of(float z, float slope) {
  if constexpr (kFunction == ActivationFunction::kIdentity) {
    return z;
  } else if constexpr (kFunction == ActivationFunction::kLeakyReLU) {
    return kBelow == Below::kFlat || z > 0.0F ? z : slope * z;
  } else if constexpr (kFunction == ActivationFunction::kReLU6) {
    return relu6(z);
  } else {
    return activate<kFunction>(z).y;
  }
}

/// z of an element and what is copied of it, by the map of its channel: z_scale, z_shift, s_scale, s_shift.
template <bool kResidual>
__device__ float z_of(const float4& map, float x, float residual) {
  const float scaled = map.x * x;
  const float z = scaled + map.y;
  return kResidual ? z + residual : z;
}
__device__ inline float copy_of(const float4& map, float x_or_z) {
  const float scaled = map.z * x_or_z;
  return scaled + map.w;
}
__device__ inline float4 map_of(const NormActChannel& channel) {
  return make_float4(channel.z_scale, channel.z_shift, channel.s_scale, channel.s_shift);
}

/// `kCopies`: codes are packed, not masks alone or nothing.
template <class Element, bool kVectors, ActivationFunction kFunction, Below kBelow, bool kResidual, bool kCopies,
          bool kNormalized>
__global__ void __launch_bounds__(kMostThreads, kForwardThreads<Element, kVectors, kResidual> / kMostThreads)
    norm_act_kernel(const Forward<Element> forward, const ColumnTiles tiles, const ForwardMemory memory) {
  using Place = PackingPlace<Element, kVectors>;
  using Extreme = ExtremeOf<Element, kResidual>;
  constexpr int kChannels = Place::kChannels;
  constexpr bool kKink = has_kink(kFunction);
  const ColumnTarget& target = forward.target;
  const ColumnTarget& normalized = forward.normalized;
  constexpr int kMasks = mask_count(kFunction);
  const int masks = kMasks > 0 ? target.layout.masks : 0;
  const int bits = target.layout.bits;
  wait_for_kernels_before();
  if (target.packed) {
    target.begin();
  }
  if constexpr (kNormalized) {
    normalized.begin();
  }

  extern __shared__ uint4 shared[];
  SharedMemory next(shared);
  Place place(tiles);
  const int of_warp = static_cast<int>(threadIdx.x) / kWarp * RowStage<Place>::kBytes;
  const RowStage<Place> x_stage(next.take(memory.rows) + of_warp);
  const RowStage<Place> residual_stage(next.take(kResidual ? memory.rows : 0) + of_warp);
  const ColumnRanges<Element, Extreme, Place> ranges(next.take(memory.ranges), tiles, place, target);
  const ColumnRanges<Element, Element, Place> normalized_ranges(next.take(memory.normalized_ranges), tiles, place,
                                                                normalized);
  const CodeSlots codes(next.take(memory.codes), place, bits);
  const CodeSlots normalized_codes(next.take(memory.normalized_codes), place, normalized.layout.bits);
  const MaskSlots first_mask(next.take(kMasks > 0 ? memory.mask : 0), place);
  const MaskSlots second_mask(next.take(kMasks > 1 ? memory.mask : 0), place);
  __shared__ ChannelTable<float4, Place> maps;
  __shared__ ChannelTable<float, Place> linears;
  __shared__ ChannelTable<float2, Place> normalized_maps;

  const auto fetch = [&](int64_t tile) {
    Place ahead = place;
    ahead.move(tile);
    x_stage.fetch(ahead, forward.x);
    if constexpr (kResidual) {
      residual_stage.fetch(ahead, forward.residual);
    }
    __pipeline_commit();
  };
  fetch(tiles.part());
  bool own_maps_are_finite = true;
  maps.load(tiles, [&](int64_t channel) {
    const float4 map = map_of(forward.channels[channel]);
    own_maps_are_finite = is_finite(map.x) && is_finite(map.y);
    return map;
  });
  linears.load(tiles, [&](int64_t channel) { return forward.channels[channel].linear; });
  if constexpr (kNormalized) {
    normalized_maps.load(tiles, [&](int64_t channel) {
      const NormActChannel& map = forward.normalized_channels[channel];
      return make_float2(map.s_scale, map.s_shift);
    });
  }
  const auto normalized_of = [](const float2& map, float x) {
    const float scaled = map.x * x;
    return scaled + map.y;
  };
  const auto grid_of = [&](float is_linear) { return masks != 0 && is_linear == 0.0F ? Grid::kSides : Grid::kPlain; };
  // What of a channel is packed at an extreme. Where it is no monotonic function of it, the slow way is taken.
  const auto copy_at = [&](int entry, float extreme) {
    const float4 map = maps.at(entry);
    if (linears.at(entry) != 0.0F) {
      return kResidual || (kKink && !forward.keeps_below) ? float_of(kNanFloat32) : copy_of(map, extreme);
    }
    return copy_of(map, kResidual ? extreme : z_of<false>(map, extreme, 0.0F));
  };
  const bool finite_maps = __syncthreads_and(own_maps_are_finite) != 0;

  for (int64_t tile = tiles.part(); tile < tiles.tiles; tile += tiles.parts) {
    place.move(tile);
    typename Place::Row x[kRows];
    typename Place::Row residual[kResidual ? kRows : 1];
    __pipeline_wait_prior(0);
    __syncwarp();
    x_stage.take(place, forward.x, x);
    if constexpr (kResidual) {
      residual_stage.take(place, forward.residual, residual);
    }
    if (tile + tiles.parts < tiles.tiles) {
      fetch(tile + tiles.parts);
    }
    const auto added = [&](int j, int k) {
      if constexpr (kResidual) {
        return residual[j][k];
      } else {
        return 0.0F;
      }
    };

    bool regular = true;
    if constexpr (kCopies || kNormalized) {
      if constexpr (kCopies && kResidual) {
        Extremes<float> extremes[kChannels];
#pragma unroll
        for (int k = 0; k < kChannels; ++k) {
          const float4 map = maps.of(place, k);
          extremes[k] = Extremes<float>::of_none();
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            extremes[k].add(z_of<true>(map, x[j][k], added(j, k)));
          }
        }
        ranges.set(place, extremes);
      }
      if constexpr ((kCopies && !kResidual) || kNormalized) {
        Extremes<Element> extremes[kChannels];
        find_extremes(x, extremes);
        if constexpr (kCopies && !kResidual) {
          ranges.set(place, extremes);
        }
        if constexpr (kNormalized) {
          normalized_ranges.set(place, extremes);
        }
      }
      __syncthreads();
      int irregular = 0;
      if constexpr (kCopies) {
        irregular |= ranges.find(tile, !kKink || forward.keeps_below, copy_at,
                                 [&](int entry) { return grid_of(linears.at(entry)); })
                         ? 1
                         : 0;
      }
      if constexpr (kNormalized) {
        irregular |=
            normalized_ranges.find(
                tile, true, [&](int entry, float extreme) { return normalized_of(normalized_maps.at(entry), extreme); },
                [](int /*entry*/) { return Grid::kPlain; }, kCopies ? tiles.strip_channels() : 0)
                ? 1
                : 0;
      }
      regular = __syncthreads_or(irregular) == 0;
    }

    // Loaded here, for round keys that live through the loop take registers that the elements need.
    const RandomState random = kCopies ? target.state() : RandomState{};
    const RandomState normalized_random = kNormalized ? normalized.state() : RandomState{};
    const uint32_t factor = opaque(1U << bits);
    const uint32_t normalized_factor = opaque(1U << normalized.layout.bits);
    FiniteCheck<Element> check;
#pragma unroll
    for (int pair = 0; pair < kChannels; pair += 2) {
      if constexpr (kNormalized) {
        const PairNoise noise(normalized_random, place.noise_block(pair), normalized.is_random());
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int k = pair + i;
          const float2 map = normalized_maps.of(place, k);
          const ColumnEncoder encoder = normalized_ranges.encoder(k);
          OctetEncoder octet(normalized_factor);
#pragma unroll
          for (int order = 0; order < kRows; ++order) {
            const int j = encoding_order(order);
            octet.add(j, noise.add(position_in_column<Grid::kPlain>(normalized_of(map, x[j][k]), encoder), i, j));
          }
          normalized_codes.store_octet(k, octet.codes());
        }
      }
      float results[kRows][2];
      const PairNoise noise(random, place.noise_block(pair), kCopies && target.is_random());
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int k = pair + i;
        const float4 map = maps.of(place, k);
        float z[kRows];
        OctetMask sides;
        OctetMask between;
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          z[j] = z_of<kResidual>(map, x[j][k], added(j, k));
          results[j][i] = output_of<kFunction, kBelow>(z[j], forward.slope);
          if constexpr (kMasks > 0) {
            sides.add(j, z[j] > 0.0F);
          }
          if constexpr (kMasks > 1) {
            between.add(j, jumps_of(kFunction).are_around(z[j]));
          }
        }
        if constexpr (kMasks > 0) {
          first_mask.store_octet(k, sides.bits());
        }
        if constexpr (kMasks > 1) {
          second_mask.store_octet(k, between.bits());
        }
        if constexpr (kCopies) {
          const ColumnEncoder encoder = ranges.encoder(k);
          uint32_t positions[kRows];
          if (kMasks > 0 && encoder.has_sides()) {
#pragma unroll
            for (int j = 0; j < kRows; ++j) {
              positions[j] = position_in_column<Grid::kSides>(map.z * z[j], encoder);  // there is no shift
            }
          } else {
            const bool is_linear = linears.of(place, k) != 0.0F;
#pragma unroll
            for (int j = 0; j < kRows; ++j) {
              positions[j] = position_in_column<Grid::kPlain>(copy_of(map, is_linear ? x[j][k] : z[j]), encoder);
            }
          }
          OctetEncoder octet(factor);
#pragma unroll
          for (int order = 0; order < kRows; ++order) {
            const int j = encoding_order(order);
            octet.add(j, noise.add(positions[j], i, j));
          }
          codes.store_octet(k, octet.codes());
        }
      }
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        x[j].set_pair(pair, results[j][0], results[j][1]);
        if constexpr (kFunction == ActivationFunction::kLeakyReLU && kBelow == Below::kFlat) {
          x[j].rectify_pair(pair);
        }
        if constexpr (!kCopies) {
          check.add(x[j], pair);
        }
      }
    }
    // Extremes that are finite tell that all elements are.
    if (kCopies ? !regular || !finite_maps : !check.all_finite()) {
      make_nans_canonical(x);
    }
    place.store(x, forward.y);
    if (!target.packed && !kNormalized) {
      continue;
    }
    __syncthreads();
    const TileWords words(tiles, target.layout.group_rows, tile);
    if (masks > 0) {
      first_mask.write<kChannels>(words, target.masks[0]);
    }
    if (masks > 1) {
      second_mask.write<kChannels>(words, target.masks[1]);
    }
    if (kCopies && regular) {
      codes.write<kChannels>(words, target.codes);
    }
    if (kNormalized && regular) {
      normalized_codes.write<kChannels>(words, normalized.codes);
    }
    if constexpr (kCopies) {
      if (!regular) {
        const auto own_grid_of = [&](int64_t channel) { return grid_of(forward.channels[channel].linear); };
        pack_tile_slowly<Element>(tiles, target, tile, own_grid_of, [&](int64_t row, int64_t channel) {
          const NormActChannel& of = forward.channels[channel];
          const int64_t index = row * tiles.channels + channel;
          const float input = to_float(forward.x[index]);
          const float z = z_of<kResidual>(map_of(of), input, kResidual ? to_float(forward.residual[index]) : 0.0F);
          const bool side = z > 0.0F;
          const float s = copy_of(map_of(of), of.linear != 0.0F ? input : z);
          return SidedNumber{!kKink || side || forward.keeps_below ? s : 0.0F, side};
        });
      }
    }
    if constexpr (kNormalized) {
      if (!regular) {
        const auto is_plain = [](int64_t /*channel*/) { return Grid::kPlain; };
        pack_tile_slowly<Element>(tiles, normalized, tile, is_plain, [&](int64_t row, int64_t channel) {
          const NormActChannel& of = forward.normalized_channels[channel];
          const float input = to_float(forward.x[row * tiles.channels + channel]);
          return SidedNumber{normalized_of(make_float2(of.s_scale, of.s_shift), input), true};
        });
      }
    }
    if constexpr (!kCopies && !kNormalized) {
      __syncthreads();  // where there are extremes, those of the next tile wait for all threads
    }
  }
}

/// Calls `body.operator()<kFunction, kBelow>()`.
template <class Body>
void with_function(const FusedActivation& activation, Body&& body) {
  using enum ActivationFunction;
  switch (activation.function) {
    case kIdentity:
      return body.template operator()<kIdentity, Below::kFlat>();
    case kLeakyReLU:
      return activation.slope == 0.0F ? body.template operator()<kLeakyReLU, Below::kFlat>()
                                      : body.template operator()<kLeakyReLU, Below::kSloped>();
    case kReLU6:
      return body.template operator()<kReLU6, Below::kFlat>();
    case kSiLU:
      return body.template operator()<kSiLU, Below::kFlat>();
    case kHardswish:
      return body.template operator()<kHardswish, Below::kFlat>();
  }
}

/// Of a matrix without elements.
__global__ void begin_kernel(const ColumnTarget target, const ColumnTarget normalized) {
  wait_for_kernels_before();
  for (const ColumnTarget& of : {target, normalized}) {
    if (of.packed) {
      of.begin();
    }
  }
}

}  // namespace

cudaError_t norm_act(const NormActForward& forward, cudaStream_t stream) {
  const int64_t rows = forward.layout.rows;
  const int64_t channels = forward.layout.channels;
  const bool vectors = has_vectors(channels, forward.type, forward.x, forward.residual, forward.y);
  const ColumnTarget target(forward.layout, forward.packed, forward.random, forward.rounding);
  const ColumnTarget normalized(forward.normalized_layout(), forward.normalized.packed, forward.normalized.random,
                                forward.rounding);
  if (rows == 0 || channels == 0) {
    return launch_kernel(begin_kernel, 1, kWarp, 0, stream, target, normalized);
  }
  cudaError_t error = cudaSuccess;
  with_element_type(forward.type, [&]<class Element>(Element /*tag*/) {
    const Forward<Element> arguments{.x = static_cast<const Element*>(forward.x),
                                     .residual = static_cast<const Element*>(forward.residual),
                                     .y = static_cast<Element*>(forward.y),
                                     .channels = forward.channels,
                                     .slope = forward.activation.slope,
                                     .keeps_below = forward.keeps_below,
                                     .target = target,
                                     .normalized_channels = forward.normalized.channels,
                                     .normalized = normalized};
    const auto launch = [&]<bool kVectors, ActivationFunction kFunction, Below kBelow, bool kResidual, bool kCopies,
                            bool kNormalized>() {
      const auto memory_of = [&](const ColumnTiles& of) {
        return ForwardMemory::of<Element, PackingPlace<Element, kVectors>, kResidual>(of, target, normalized);
      };
      const auto bytes_of = [&](const ColumnTiles& of) {
        return memory_of(of).bytes(kResidual, mask_count(kFunction));
      };
      const ColumnTiles tiles = tiles_of_device(
          rows, channels, forward.type, kForwardThreads<Element, kVectors, kResidual>, kMostTilesOfBlock, bytes_of);
      const ForwardMemory memory = memory_of(tiles);
      const int bytes = bytes_of(tiles);
      const auto kernel = norm_act_kernel<Element, kVectors, kFunction, kBelow, kResidual, kCopies, kNormalized>;
      error = allow_shared_memory(kernel, bytes);
      if (error == cudaSuccess) {
        error = launch_kernel(kernel, tiles.blocks(), tiles.threads(), bytes, stream, arguments, tiles, memory);
      }
    };
    with_function(forward.activation, [&]<ActivationFunction kFunction, Below kBelow>() {
      constexpr bool kAdds = !is_smooth(kFunction);
      constexpr bool kNormalizes = kAdds && kFunction != ActivationFunction::kReLU6;
      with_flags(
          [&]<bool kVectors, bool kResidual, bool kCopies, bool kNormalized>() {
            if constexpr ((kAdds || !kResidual) && (!kNormalized || (kNormalizes && kResidual))) {
              launch.template operator()<kVectors, kFunction, kBelow, kResidual, kCopies, kNormalized>();
            }
          },
          vectors, forward.residual != nullptr, forward.layout.bits != 0, forward.normalized.channels != nullptr);
    });
  });
  return error;
}

}  // namespace actnn::cuda
