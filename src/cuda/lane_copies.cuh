#pragma once

#include <cstdint>
#include <type_traits>

#include "actnn/core/activation.h"
#include "actnn/core/norm_act.h"
#include "actnn/cuda/norm_act.h"
#include "src/cuda/split_tiles.cuh"

/// \file
/// The sides and copies of a lane in a normalization's backward: unpacked, or computed from the normalization's input.
/// They are loaded first, and decoded when all loads of a tile are on their way. `decode(table, linear, body)` calls
/// `body(pair, j, side, s)` for the rows of each pair of channels, with the sides and copies of both channels.

namespace actnn::cuda {

inline bool has_derivatives(const NormActBackward& backward) {
  return backward.derivative.function != ActivationFunction::kLeakyReLU;
}

/// Arguments of the kernels.
template <class Element>
struct Backward {
  const SplitSteps* steps;
  const uint32_t* sides;  ///< null: every element is above the kink
  int side_planes;        ///< all planes that sides, and derivatives, are some of
  const uint32_t* values;
  int value_planes;
  const Element* grad;
  const Element* second_grad;
  const Element* x;
  const NormActChannel* channels_of_x;
  float slope;
  int bits;  ///< that grids are of
  const uint32_t* derivatives;
  int derivative_bits;
  DerivativeGrid derivative_grid;

  explicit Backward(const NormActBackward& backward)
      : sides(backward.bits == 0 ? nullptr : words_of(backward, backward.packed)),
        side_planes(backward.planes()),
        grad(static_cast<const Element*>(backward.grad)),
        second_grad(static_cast<const Element*>(backward.second_grad)),
        x(static_cast<const Element*>(backward.x)),
        channels_of_x(backward.channels_of_x),
        slope(backward.slope),
        derivatives(has_derivatives(backward) ? words_of(backward, backward.packed) + backward.bits * kSplitLanes
                                              : nullptr),
        derivative_bits(backward.derivative.bits),
        derivative_grid(backward.derivative) {
    if (backward.normalized) {
      steps = reinterpret_cast<const SplitSteps*>(backward.normalized);
      values = words_of(backward, backward.normalized);
      value_planes = backward.normalized_bits;
      bits = split_bits(backward.normalized_bits);
    } else {
      steps = reinterpret_cast<const SplitSteps*>(backward.packed);
      values = sides ? sides + kSplitLanes : nullptr;
      value_planes = backward.planes();
      bits = backward.bits;
    }
  }

 private:
  static const uint32_t* words_of(const NormActBackward& backward, const uint8_t* packed) {
    return packed ? reinterpret_cast<const uint32_t*>(packed + codes_offset(backward.layout.groups())) : nullptr;
  }
};

/// The sides of a lane.
template <class Element, class Place>
__device__ uint32_t load_sides(const Backward<Element>& backward, const Place& place) {
  return backward.sides ? *words_of_lane(backward.sides, place.group(), backward.side_planes) : ~0U;
}

/// How a warp's elements are treated. Gradients below the kink are 0 on the short ways, or no element is below.
enum class Way {
  kSplitRelu,   ///< all channels are split
  kLinearRelu,  ///< all are linear
  kAny
};

/// Calls `body(pair, j)` for the rows of each pair of channels.
template <class Body>
__device__ void for_each_pair(Body&& body) {
#pragma unroll
  for (int pair = 0; pair < kOctetChannels; pair += 2) {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      body(pair, j);
    }
  }
}

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
    copies.sides_ = load_sides(backward, place);
    const uint32_t* words = words_of_lane(backward.values, place.group(), backward.value_planes);
    for_each_plane(backward.bits, [&]<int plane>() { copies.planes_[plane] = words[plane * kSplitLanes]; });
    return copies;
  }

  template <Way kWay, class Body>
  __device__ void decode(const Table& /*table*/, uint32_t linear, Body&& body) const {
    LaneValues values;
    for_each_plane(bits_, [&]<int plane>() { values.add_plane<plane>(planes_[plane]); });
    const SplitGrid grid(steps_, bits_, kTypeOf<Element>);
    for_each_pair([&](int pair, int j) {
      bool side[2];
      float s[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        side[i] = is_above(sides_, j, pair + i);
        const float value = values.number(j, pair + i);
        const bool is_linear = kWay == Way::kLinearRelu || (kWay == Way::kAny && ((linear >> (pair + i)) & 1U) != 0);
        s[i] = grid.copy_at(side[i], value, is_linear);
      }
      body(pair, j, side, s);
    });
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
    copies.sides_ = load_sides(backward, place);
    place.template load<kStreaming>(backward.x, copies.x_);
    return copies;
  }

  template <Way /*kWay*/, class Body>
  __device__ void decode(const Table& table, uint32_t /*linear*/, Body&& body) const {
    for_each_pair([&](int pair, int j) {
      bool side[2];
      float s[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        side[i] = is_above(sides_, j, pair + i);
        const float2 map = table.maps[pair + i];
        const float scaled = map.x * x_[j][pair + i];
        s[i] = scaled + map.y;
      }
      body(pair, j, side, s);
    });
  }

 private:
  uint32_t sides_;
  RowOctet<Element> x_[kLaneRows];
};

/// The derivatives of a lane, of an activation that has some; otherwise nothing.
template <bool kDerived>
class LaneDerivatives {
 public:
  template <class Element, class Place>
  __device__ static LaneDerivatives load(const Backward<Element>& backward, const Place& place) {
    LaneDerivatives derivatives(backward.derivative_grid);
    const uint32_t* words = words_of_lane(backward.derivatives, place.group(), backward.side_planes);
    for_each_plane(backward.derivative_bits + 1,
                   [&]<int plane>() { derivatives.values_.template add_plane<plane>(words[plane * kSplitLanes]); });
    return derivatives;
  }

  /// The gradient of z at row j, channel k, from that of y.
  template <Way /*kWay*/, class Element>
  __device__ float gradient(const Backward<Element>& /*backward*/, float gradient, int j, int k, bool /*side*/) const {
    return derived_gradient(gradient, (*this)(j, k));
  }
  __device__ float operator()(int j, int k) const { return grid_.decode(values_.number(j, k)); }

 private:
  __device__ explicit LaneDerivatives(const DerivativeGrid& grid) : grid_(grid) {}

  DerivativeGrid grid_;
  LaneValues values_;
};

template <>
class LaneDerivatives<false> {
 public:
  template <class Element, class Place>
  __device__ static LaneDerivatives load(const Backward<Element>& /*backward*/, const Place& /*place*/) {
    return {};
  }

  template <Way kWay, class Element>
  __device__ float gradient(const Backward<Element>& backward, float gradient, int /*j*/, int /*k*/, bool side) const {
    return activation_gradient(gradient, side, kWay == Way::kAny ? backward.slope : 0.0F);
  }
};

template <class Element, bool kVectors, bool kFromX>
using LaneCopies = std::conditional_t<kFromX, InputCopies<Element, kVectors>, PackedCopies<Element, kVectors>>;

/// `kDerived`: gradients are those of derivatives, on every way.
template <bool kDerived, class Element>
__device__ Way way_of(const Backward<Element>& backward, uint32_t linear) {
  constexpr uint32_t kAll = (1U << kOctet) - 1;
  const bool has_relu = kDerived || backward.slope == 0.0F || !backward.sides;
  return has_relu && __all_sync(~0U, linear == 0)      ? Way::kSplitRelu
         : has_relu && __all_sync(~0U, linear == kAll) ? Way::kLinearRelu
                                                       : Way::kAny;
}

/// Calls `body.operator()<way>()`. Copies of an input have no kinds, and one short way.
template <bool kFromX, class Body>
__device__ void with_way(Way way, Body&& body) {
  if (way == Way::kSplitRelu) {
    return body.template operator()<Way::kSplitRelu>();
  }
  if constexpr (!kFromX) {
    if (way == Way::kLinearRelu) {
      return body.template operator()<Way::kLinearRelu>();
    }
  }
  body.template operator()<Way::kAny>();
}

}  // namespace actnn::cuda
