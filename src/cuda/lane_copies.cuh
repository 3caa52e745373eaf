#pragma once

#include <cstdint>
#include <type_traits>

#include "actnn/core/norm_act.h"
#include "actnn/cuda/norm_act.h"
#include "src/cuda/split_tiles.cuh"

/// \file
/// The sides and copies of a lane in a normalization's backward: unpacked, or computed from the normalization's input. They are
/// loaded first, and decoded when all loads of a tile are on their way. `decode(table, linear, body)` calls
/// `body(pair, j, side, s)` for the rows of each pair of channels, with the sides and copies of both channels.

namespace actnn::cuda {

/// Arguments of the kernels.
template <class Element>
struct Backward {
  const SplitSteps* steps;
  const uint32_t* words;  ///< null: every element is above the bend
  const Element* grad;
  const Element* second_grad;
  const Element* x;
  const NormActChannel* channels_of_x;
  float slope;
  int bits;

  explicit Backward(const NormActBackward& backward)
      : steps(reinterpret_cast<const SplitSteps*>(backward.packed)),
        words(backward.packed
                  ? reinterpret_cast<const uint32_t*>(backward.packed + codes_offset(backward.layout.groups()))
                  : nullptr),
        grad(static_cast<const Element*>(backward.grad)),
        second_grad(static_cast<const Element*>(backward.second_grad)),
        x(static_cast<const Element*>(backward.x)),
        channels_of_x(backward.channels_of_x),
        slope(backward.slope),
        bits(backward.bits) {}
};

template <class Element, bool kVectors>
class PackedCopies {
  using Place = SplitPlace<Element, kVectors>;

 public:
  /// What belongs to channels: nothing.
  struct Table {
    __device__ void load(const Backward<Element>& /*backward*/, const Place& /*place*/) {}
  };

  template <class Map>
  __device__ static uint32_t linear_channels(const Map* channels, const Place& place) {
    return cuda::linear_channels(channels, place);
  }

  template <bool kStreaming>
  __device__ static PackedCopies load(const Backward<Element>& backward, const Place& place) {
    PackedCopies copies;
    copies.steps_ = backward.steps[place.group()];
    copies.bits_ = backward.bits;
    const uint32_t* words = words_of_lane(backward.words, place.group(), backward.bits);
    copies.sides_ = words[0];
    for_each_plane(backward.bits, [&]<int plane>() { copies.planes_[plane] = words[(plane + 1) * kSplitLanes]; });
    return copies;
  }

  /// `kSplit`: no channel is linear.
  template <bool kSplit, class Body>
  __device__ void decode(const Table& /*table*/, uint32_t linear, Body&& body) const {
    LaneValues values;
    for_each_plane(bits_, [&]<int plane>() { values.add_plane<plane>(planes_[plane]); });
    const SplitGrid grid(steps_, bits_, kTypeOf<Element>);
#pragma unroll
    for (int pair = 0; pair < kOctetChannels; pair += 2) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        bool side[2];
        float s[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          side[i] = is_above(sides_, j, pair + i);
          // The byte in the mantissa of 2^23: conversions are slow.
          const uint32_t mantissa = __byte_perm(values.channel[pair + i], bits_of(kIntegerInMantissa), 0x7650 + j);
          const float value = float_of(mantissa) - kIntegerInMantissa;
          s[i] = grid.copy_at(side[i], value, !kSplit && ((linear >> (pair + i)) & 1U) != 0);
        }
        body(pair, j, side, s);
      }
    }
  }

 private:
  SplitSteps steps_;
  int bits_;
  uint32_t sides_;
  uint32_t planes_[kMaxBits - 1];
};

template <class Element, bool kVectors>
class InputCopies {
  using Place = SplitPlace<Element, kVectors>;

 public:
  /// Scale and shift of the copies.
  struct Table {
    ChannelTable<float2> maps;

    __device__ void load(const Backward<Element>& backward, const Place& place) {
      maps.load(place, [&](int64_t channel) {
        const NormActChannel& map = backward.channels_of_x[channel];
        return make_float2(map.s_scale, map.s_shift);
      });
    }
  };

  /// None: copies of both kinds are computed alike.
  template <class Map>
  __device__ static uint32_t linear_channels(const Map* /*channels*/, const Place& /*place*/) {
    return 0;
  }

  template <bool kStreaming>
  __device__ static InputCopies load(const Backward<Element>& backward, const Place& place) {
    InputCopies copies;
    copies.sides_ = backward.words ? *words_of_lane(backward.words, place.group(), backward.bits) : ~0U;
    place.template load<kStreaming>(backward.x, copies.x_);
    return copies;
  }

  template <bool /*kSplit*/, class Body>
  __device__ void decode(const Table& table, uint32_t /*linear*/, Body&& body) const {
#pragma unroll
    for (int pair = 0; pair < kOctetChannels; pair += 2) {
      const float2 maps[2] = {table.maps[pair], table.maps[pair + 1]};
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        bool side[2];
        float s[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          side[i] = is_above(sides_, j, pair + i);
          const float scaled = maps[i].x * x_[j][pair + i];
          s[i] = scaled + maps[i].y;
        }
        body(pair, j, side, s);
      }
    }
  }

 private:
  uint32_t sides_;
  RowOctet<Element> x_[kLaneRows];
};

template <class Element, bool kVectors, bool kFromX>
using LaneCopies = std::conditional_t<kFromX, InputCopies<Element, kVectors>, PackedCopies<Element, kVectors>>;

/// Whether the elements of a warp take the short way: their channels are split, and gradients below the bend are 0 (or no element
/// is below).
template <class Element>
__device__ bool has_split_relu(const Backward<Element>& backward, uint32_t linear) {
  return __all_sync(~0U, linear == 0) && (backward.slope == 0.0F || !backward.words);
}

}  // namespace actnn::cuda
