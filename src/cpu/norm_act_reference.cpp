#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "actnn/core/layout.h"
#include "actnn/cpu/norm_act.h"
#include "src/cpu/channel_moments.h"

namespace actnn::cpu {
namespace {

using Layout = SplitLayout<int64_t>;
using Lane = std::array<float, kLaneRows * kOctet>;  ///< row j, channel k at 8 j + k

/// The existing rows and channels of one lane of a group.
struct LanePlace {
  int64_t row;
  int64_t channel;
  int rows;
  int channels;
  int rows_apart;

  LanePlace(const Layout& layout, int64_t group, int lane)
      : row(group / layout.channel_blocks() * layout.group_rows() + lane / layout.lanes_across()),
        channel(group % layout.channel_blocks() * layout.group_channels() + lane % layout.lanes_across() * kOctet),
        rows(
            static_cast<int>(std::clamp<int64_t>(ceil_div(layout.rows - row, layout.lane_rows_apart()), 0, kLaneRows))),
        channels(static_cast<int>(std::clamp<int64_t>(layout.channels - channel, 0, kOctet))),
        rows_apart(layout.lane_rows_apart()) {}

  /// Calls `body(8 j + k, index of the element, channel)`.
  template <class Body>
  void for_each(const Layout& layout, Body&& body) const {
    for (int j = 0; j < rows; ++j) {
      const int64_t first = (row + int64_t{j} * rows_apart) * layout.channels + channel;
      for (int k = 0; k < channels; ++k) {
        body(j * static_cast<int>(kOctet) + k, first + k, channel + k);
      }
    }
  }
};

/// The words of a lane: one of each plane, `kSplitLanes` apart. Sides and values first, then derivatives.
struct LaneWords {
  std::array<uint32_t, kMaxBits + kMostDerivativeBits> planes{};

  void set(int first_plane, int count, int place, uint32_t code) {
    for (int plane = 0; plane < count; ++plane) {
      planes[first_plane + plane] |= ((code >> plane) & 1u) << place;
    }
  }
  uint32_t code(int first_plane, int count, int place) const {
    uint32_t code = 0;
    for (int plane = 0; plane < count; ++plane) {
      code |= ((planes[first_plane + plane] >> place) & 1u) << plane;
    }
    return code;
  }
};

int64_t words_offset(const Layout& layout, int64_t group, int plane, int lane, int planes) {
  return codes_offset(layout.groups()) +
         static_cast<int64_t>(sizeof(uint32_t)) * ((group * planes + plane) * kSplitLanes + lane);
}

void store_words(const LaneWords& words, uint8_t* packed, const Layout& layout, int64_t group, int lane, int planes) {
  for (int plane = 0; plane < planes; ++plane) {
    std::memcpy(packed + words_offset(layout, group, plane, lane, planes), &words.planes[plane], sizeof(uint32_t));
  }
}

LaneWords load_words(const uint8_t* packed, const Layout& layout, int64_t group, int lane, int planes) {
  LaneWords words;
  for (int plane = 0; plane < planes; ++plane) {
    std::memcpy(&words.planes[plane], packed + words_offset(layout, group, plane, lane, planes), sizeof(uint32_t));
  }
  return words;
}

/// Calls `body` with the activation as a type.
template <class Body>
auto with_function(ActivationFunction function, Body&& body) {
  using enum ActivationFunction;
  switch (function) {
    case kReLU6:
      return body(std::integral_constant<ActivationFunction, kReLU6>());
    case kSiLU:
      return body(std::integral_constant<ActivationFunction, kSiLU>());
    case kHardswish:
      return body(std::integral_constant<ActivationFunction, kHardswish>());
    case kLeakyReLU:
      break;
  }
  return body(std::integral_constant<ActivationFunction, kLeakyReLU>());
}

ActivatedNumber activated_by(const NormActForward& forward, float z, bool side) {
  return with_function(forward.derivative.function, [&](auto function) -> ActivatedNumber {
    if constexpr (function == ActivationFunction::kLeakyReLU) {
      return {activated(z, side, forward.slope), 0.0F};
    } else {
      return activate<function>(z);
    }
  });
}

template <class Element>
void forward_group(const NormActForward& forward, int64_t group) {
  const Layout& layout = forward.layout;
  const auto* x = static_cast<const Element*>(forward.x);
  const auto* residual = static_cast<const Element*>(forward.residual);
  auto* y = static_cast<Element*>(forward.y);

  std::array<Lane, kSplitLanes> copies{};
  std::array<Lane, kSplitLanes> derivatives{};
  std::array<uint32_t, kSplitLanes> sides{};
  float above = 0.0F;
  float below = 0.0F;
  bool finite = true;
  for (int lane = 0; lane < kSplitLanes; ++lane) {
    LanePlace(layout, group, lane).for_each(layout, [&](int place, int64_t index, int64_t channel) {
      const NormActChannel& map = forward.channels[channel];
      const float input = to_float(x[index]);
      const float scaled = map.z_scale * input;
      float z = scaled + map.z_shift;
      if (residual) {
        z = z + to_float(residual[index]);
      }
      const bool side = z > 0.0F;
      const ActivatedNumber result = activated_by(forward, z, side);
      if (y) {
        store_rounded(with_canonical_nan(result.y), &y[index]);
      }
      derivatives[lane][place] = result.derivative;
      const float scaled_copy = map.s_scale * (map.linear != 0.0F ? input : z);
      float s = scaled_copy + map.s_shift;
      finite = finite && is_finite(s);
      if (!side && !forward.keeps_below) {
        s = 0.0F;
      }
      sides[lane] |= static_cast<uint32_t>(side) << place;
      copies[lane][place] = s;
      above = s > above ? s : above;
      below = -s > below ? -s : below;
    });
  }
  if (forward.planes() == 0) {
    return;
  }

  const float largest = finite ? 0.0F : float_of(kInfinityFloat32);
  const SplitSteps steps =
      forward.bits == 0 ? SplitSteps{}
                        : split_steps(std::max(above, largest), std::max(below, largest), forward.bits, forward.type);
  std::memcpy(forward.packed + group * static_cast<int64_t>(sizeof steps), &steps, sizeof steps);
  const SplitEncoder encoder(steps, std::max(forward.bits, kMinSplitBits), forward.type);
  const DerivativeEncoder derivative_encoder(forward.derivative);
  for (int lane = 0; lane < kSplitLanes; ++lane) {
    LaneWords words;
    PhiloxBlock random{};
    PhiloxBlock random_of_derivative{};
    LanePlace(layout, group, lane).for_each(layout, [&](int place, int64_t index, int64_t channel) {
      const int k = place % static_cast<int>(kOctet);
      if (k == 0 && forward.stochastic) {
        const auto counter = static_cast<uint64_t>(index / layout.channels * layout.row_octets() + channel / kOctet);
        random = forward.random.block(counter);
        random_of_derivative = forward.random.block(derivative_counter(counter));
      }
      const auto noise_of = [&](const PhiloxBlock& block) {
        return forward.stochastic ? random16(block, k) : half_step(kMinBits);
      };
      if (forward.bits != 0) {
        const bool side = ((sides[lane] >> place) & 1u) != 0;
        const bool linear = forward.channels[channel].linear != 0.0F;
        const uint32_t value = encoder.encode(copies[lane][place], side, linear, noise_of(random));
        words.set(0, forward.bits, place, (value << 1) | static_cast<uint32_t>(side));
      }
      const uint32_t code = derivative_encoder.encode(derivatives[lane][place], noise_of(random_of_derivative));
      words.set(forward.bits, forward.derivative.bits, place, code);
    });
    store_words(words, forward.packed, layout, group, lane, forward.planes());
  }
}

/// What is known of the activation at an element: the side of the kink, or the derivative.
struct OfActivation {
  bool side;
  float derivative;
};

/// The words of a lane. Where no copies are packed, all elements are above the kink.
class SavedLane {
 public:
  SavedLane(const NormActBackward& backward, int64_t group, int lane) : backward_(backward) {
    if (backward.packed) {
      words_ = load_words(backward.packed, backward.layout, group, lane, backward.planes());
    }
  }

  OfActivation of_activation(int place) const {
    const PackedDerivative& packed = backward_.derivative;
    const bool side = !backward_.packed || backward_.bits == 0 || words_.code(0, 1, place) != 0;
    if (packed.function == ActivationFunction::kLeakyReLU) {
      return {side, 0.0F};
    }
    const auto code = static_cast<float>(words_.code(backward_.bits, packed.bits, place));
    return {side, DerivativeGrid(packed).decode(code)};
  }
  uint32_t value(int place) const { return words_.code(1, backward_.bits - 1, place); }

 private:
  const NormActBackward& backward_;
  LaneWords words_;
};

/// Calls `body(index, channel, of activation, s)` for the elements of a group, s from the normalization's input.
template <class Element, class Body>
void for_each_exact(const NormActBackward& backward, int64_t group, Body&& body) {
  const auto* x = static_cast<const Element*>(backward.x);
  for (int lane = 0; lane < kSplitLanes; ++lane) {
    const SavedLane saved(backward, group, lane);
    LanePlace(backward.layout, group, lane).for_each(backward.layout, [&](int place, int64_t index, int64_t channel) {
      const NormActChannel& map = backward.channels_of_x[channel];
      const float scaled = map.s_scale * to_float(x[index]);
      body(index, channel, saved.of_activation(place), scaled + map.s_shift);
    });
  }
}

/// The same with s from the copies, if there is no input; `linear(channel)` says of which kind a channel is.
template <class Element, class IsLinear, class Body>
void for_each_copy(const NormActBackward& backward, int64_t group, IsLinear&& is_linear, Body&& body) {
  if (backward.x) {
    for_each_exact<Element>(backward, group, body);
    return;
  }
  SplitSteps steps;
  std::memcpy(&steps, backward.packed + group * static_cast<int64_t>(sizeof steps), sizeof steps);
  const SplitGrid grid(steps, backward.bits, backward.type);
  for (int lane = 0; lane < kSplitLanes; ++lane) {
    const SavedLane saved(backward, group, lane);
    LanePlace(backward.layout, group, lane).for_each(backward.layout, [&](int place, int64_t index, int64_t channel) {
      const OfActivation of = saved.of_activation(place);
      body(index, channel, of, grid.decode(of.side, saved.value(place), is_linear(channel)));
    });
  }
}

/// dz of an element.
template <class Element>
float gradient_of(const NormActBackward& backward, int64_t index, OfActivation of) {
  float gradient = to_float(static_cast<const Element*>(backward.grad)[index]);
  if (backward.second_grad) {
    gradient = gradient + to_float(static_cast<const Element*>(backward.second_grad)[index]);
  }
  return backward.derivative.function == ActivationFunction::kLeakyReLU
             ? activation_gradient(gradient, of.side, backward.slope)
             : derived_gradient(gradient, of.derivative);
}

/// y of a copy of z.
float output_of(const NormActBackward& backward, float z, OfActivation of) {
  return backward.derivative.function == ActivationFunction::kReLU6 ? relu6_of_copy(z, of.side, of.derivative != 0.0F)
                                                                    : activated(z, of.side, backward.slope);
}

}  // namespace

namespace reference {

void part_moments(const void* x, ElementType type, const Layout& layout, int64_t part, double* mean, double* squares) {
  const int64_t channels = layout.channels;
  const int64_t first = part * kPartRows;
  const int64_t last = std::min(first + kPartRows, layout.rows);
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    const auto* elements = static_cast<const Element*>(x);
    std::fill_n(mean, channels, 0.0);
    std::fill_n(squares, channels, 0.0);
    for (int64_t row = first; row < last; ++row) {
      for (int64_t channel = 0; channel < channels; ++channel) {
        const double distance = double{to_float(elements[row * channels + channel])} -
                                moments_origin(to_float(elements[first * channels + channel]));
        mean[channel] += distance;
        squares[channel] += distance * distance;
      }
    }
    for (int64_t channel = 0; channel < channels; ++channel) {
      finish_moments(moments_origin(to_float(elements[first * channels + channel])), last - first, mean[channel],
                     squares[channel]);
    }
  });
}

void norm_act(const NormActForward& forward, int64_t first, int64_t last) {
  with_element_type(forward.type, [&]<class Element>(Element /*tag*/) {
    for (int64_t group = first; group < last; ++group) {
      forward_group<Element>(forward, group);
    }
  });
}

void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums) {
  const int64_t blocks = backward.layout.channel_blocks();
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    for (int64_t group = first * blocks; group < last * blocks; ++group) {
      for_each_copy<Element>(
          backward, group, [&](int64_t channel) { return channels[channel].linear != 0.0F; },
          [&](int64_t index, int64_t channel, OfActivation of, float s) {
            const float dz = gradient_of<Element>(backward, index, of);
            sums[channel] += dz;
            copy_sums[channel] += static_cast<double>(dz) * s;
          });
    }
  });
}

void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last) {
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    for (int64_t group = first; group < last; ++group) {
      for_each_copy<Element>(
          backward, group, [&](int64_t channel) { return channels[channel].linear != 0.0F; },
          [&](int64_t index, int64_t channel, OfActivation of, float s) {
            const NormActGradient& map = channels[channel];
            const float dz = gradient_of<Element>(backward, index, of);
            const float of_gradient = map.scale * dz;
            const float of_copy = map.of_copy * s;
            const float sum = of_gradient + of_copy;
            store_rounded(with_canonical_nan(sum + map.shift), &static_cast<Element*>(grad_input)[index]);
            if (grad_sum) {
              store_rounded(with_canonical_nan(dz), &static_cast<Element*>(grad_sum)[index]);
            }
          });
    }
  });
}

void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last) {
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    for (int64_t group = first; group < last; ++group) {
      for_each_copy<Element>(
          backward, group, [&](int64_t channel) { return channels[channel].linear != 0.0F; },
          [&](int64_t index, int64_t channel, OfActivation of, float s) {
            const float scaled = channels[channel].a * s;
            const float z = scaled + channels[channel].b;
            store_rounded(with_canonical_nan(output_of(backward, z, of)), &static_cast<Element*>(y)[index]);
          });
    }
  });
}

}  // namespace reference
}  // namespace actnn::cpu
