#include "actnn/cpu/norm_act.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/norm_act.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/activation-inl.h"
#include "src/cpu/split-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void norm_act(const NormActForward& forward, int64_t first, int64_t last) { reference::norm_act(forward, first, last); }

#else

namespace {

/// What the counter of each octet's noise in a group is above that of the first, in the order of the bits of the words;
/// within a vector as `dealt_blocks` says.
struct NoiseCounters {
  HWY_ALIGN uint64_t above_first[kGroupElements / kOctet];

  explicit NoiseCounters(const SplitLayout<int64_t>& layout) {
    const Word64Tag d64;
    HWY_ALIGN uint64_t dealt[hn::MaxLanes(d64)];
    hn::Store(dealt_blocks(), d64, dealt);
    for (uint64_t i = 0; i < kGroupElements / kOctet; ++i) {
      const auto octet = static_cast<int64_t>(i / hn::Lanes(d64) * hn::Lanes(d64) + dealt[i % hn::Lanes(d64)]);
      const int64_t lane = octet / kLaneRows;
      const int64_t row = lane / layout.lanes_across() + octet % kLaneRows * layout.lane_rows_apart();
      above_first[i] = static_cast<uint64_t>(row * layout.row_octets() + lane % layout.lanes_across());
    }
  }
};

/// What all groups of a call share.
template <class Tag>
struct Forward {
  const NormActForward& arguments;
  ChannelMaps<NormActChannel> maps;
  bool has_linear;  ///< channels
  NoiseCounters counters;
  PhiloxKeys keys;
  Kink<Tag> kink;
  uint8_t* words;  ///< of group 0

  explicit Forward(const NormActForward& forward)
      : arguments(forward),
        maps(forward.channels, forward.layout.channels),
        has_linear(std::any_of(forward.channels, forward.channels + forward.layout.channels,
                               [](const NormActChannel& channel) { return channel.linear != 0.0F; })),
        counters(forward.layout),
        keys(forward.random.seed),
        kink(forward.slope),
        words(forward.planes() == 0 ? nullptr : forward.packed + codes_offset(forward.layout.groups())) {}
};

/// Behind the bits of a code.
inline constexpr uint32_t kLinear = 0x100;

/// A group's elements before they are codes, in the order of the bits of its words.
struct GroupCopies {
  HWY_ALIGN float copies[kGroupElements];
  HWY_ALIGN uint32_t flags[kGroupElements];  ///< kSideOfCode above 0, kLinear of a linear channel
  float above;                               ///< the largest distance from 0; NaN or infinite if one of any side is
  float below;
};

/// A group's derivatives before they are codes, as `DerivativeEncoder::position` gives them.
struct GroupDerivatives {
  HWY_ALIGN uint32_t positions[kGroupElements];
};
struct Nothing {};

/// The `Store` of results that are not wanted.
struct StoreNothing {};

/// Writes y of a group and finds its copies, and derivatives unless the activation has none.
template <class Element, class Store, ActivationFunction kFunction, class Tag, class Derivatives>
HWY_INLINE void normalize_group(const Forward<Tag>& forward, const GroupPlace& place, GroupCopies& group,
                                Derivatives& derivatives) {
  const Tag df;
  const hn::Rebind<uint32_t, Tag> d32;
  const NormActForward& arguments = forward.arguments;
  const auto* x = static_cast<const Element*>(arguments.x);
  const auto* residual = static_cast<const Element*>(arguments.residual);
  auto* y = static_cast<Element*>(arguments.y);
  const auto zero = hn::Zero(df);
  const auto drops_below = hn::MaskFromVec(hn::BitCast(df, hn::Set(d32, arguments.keeps_below ? 0u : ~0u)));
  auto highest = zero;
  auto lowest = zero;
  const int64_t ahead = prefetch_distance(arguments.layout);
  auto finite = zero;  // until an infinity or NaN makes it NaN
  const DerivativeEncoder derivative_encoder(arguments.derivative);
  place.for_each_strip(df, [&](const Strip& strip) {
    const auto z_scale = forward.maps.field(df, &NormActChannel::z_scale, strip.channel);
    const auto z_shift = forward.maps.field(df, &NormActChannel::z_shift, strip.channel);
    const auto s_scale = forward.maps.field(df, &NormActChannel::s_scale, strip.channel);
    const auto s_shift = forward.maps.field(df, &NormActChannel::s_shift, strip.channel);
    const auto linear = forward.maps.is_linear(df, strip.channel);
    const auto below = hn::IfThenElseZero(hn::RebindMask(d32, linear), hn::Set(d32, kLinear));
    const auto above = hn::Or(below, hn::Set(d32, uint32_t{kSideOfCode}));
    for (int64_t j = 0; j < strip.rows; ++j) {
      const int64_t index = strip.index + j * strip.stride;
      const int64_t row = strip.place + j * kOctet;
      const auto input = load_ahead(df, x + index, ahead);
      auto z = hn::Add(hn::Mul(z_scale, input), z_shift);
      if (residual) {
        z = hn::Add(z, load_ahead(df, residual + index, ahead));
      }
      const auto side = hn::Gt(z, zero);
      if constexpr (kFunction == ActivationFunction::kLeakyReLU) {
        if constexpr (!std::is_same_v<Store, StoreNothing>) {
          store_floats(df, canonical_nan(df, forward.kink.activated(z, side)), y + index, Store());
        }
      } else {
        const auto result = activate<kFunction>(df, z);
        store_floats(df, canonical_nan(df, result.y), y + index, Store());
        store_row(derivative_position(df, derivative_encoder, result.derivative), d32, derivatives.positions + row);
      }
      auto s = hn::Add(hn::Mul(s_scale, hn::IfThenElse(linear, input, z)), s_shift);
      finite = hn::MulAdd(s, zero, finite);
      s = hn::IfThenZeroElse(hn::AndNot(side, drops_below), s);
      highest = hn::Max(highest, s);
      lowest = hn::Min(lowest, s);
      store_row(s, df, group.copies + row);
      store_row(hn::IfThenElse(hn::RebindMask(d32, side), above, below), d32, group.flags + row);
    }
  });
  const float not_finite = hn::GetLane(hn::SumOfLanes(df, finite));
  group.above = hn::GetLane(hn::MaxOfLanes(df, highest)) + not_finite;
  group.below = not_finite - hn::GetLane(hn::MinOfLanes(df, lowest));
}

/// The counter of the noise of a group's first octet.
uint64_t first_counter(const GroupPlace& place) {
  return static_cast<uint64_t>((place.row * place.matrix_channels + place.channel) / kOctet);
}

/// The noise of a group, or half a step, in the order of the bits of its words.
template <class Tag>
HWY_INLINE void draw_noise(const Forward<Tag>& forward, uint64_t first_counter, uint16_t* numbers) {
  const NormActForward& arguments = forward.arguments;
  if (!arguments.stochastic) {
    std::fill_n(numbers, kGroupElements, static_cast<uint16_t>(half_step(kMinBits)));
    return;
  }
  const Word64Tag d64;
  const auto first = hn::Set(d64, first_counter);
  const auto counters_from = [&](int64_t i) { return hn::Add(first, hn::Load(d64, forward.counters.above_first + i)); };
  philox_blocks_at(forward.keys, arguments.random.offset, counters_from, kGroupElements / kOctet,
                   reinterpret_cast<uint32_t*>(numbers));
}

/// The codes of a group by `SplitEncoder::encode`. All channels are split unless `kHasLinear`.
template <bool kHasLinear>
HWY_INLINE void encode_group(const GroupCopies& group, const SplitEncoder& encoder, const uint16_t* noise,
                             uint8_t* codes) {
  const FloatTag df;
  const Word32Tag d32;
  const hn::Rebind<uint16_t, FloatTag> d16;
  const hn::Rebind<uint8_t, FloatTag> d8;
  const auto above = hn::Set(df, encoder.above);
  const auto below = hn::Set(df, -encoder.below);
  const auto integer = hn::Set(df, kIntegerInMantissa);
  // What the highest value becomes with the upper half of the float that it was the mantissa of, and that a byte has no
  // room for.
  const auto highest = hn::Set(d32, (bits_of(kIntegerInMantissa) >> 16) + encoder.highest);
  for (int64_t i = 0; i < kGroupElements; i += static_cast<int64_t>(hn::Lanes(df))) {
    const auto flags = hn::Load(d32, group.flags + i);
    const auto s = hn::Load(df, group.copies + i);
    const auto side = hn::RebindMask(df, hn::TestBit(flags, hn::Set(d32, uint32_t{kSideOfCode})));
    auto scaled = hn::Mul(s, hn::IfThenElse(side, above, below));
    if constexpr (kHasLinear) {
      const auto is_linear = hn::RebindMask(df, hn::TestBit(flags, hn::Set(d32, kLinear)));
      const auto distance = hn::Sub(s, hn::Set(df, encoder.grid.lowest));
      scaled = hn::IfThenElse(is_linear, hn::Mul(distance, hn::Set(df, encoder.linear)), scaled);
    }
    const auto units_away = hn::IfThenElseZero(hn::Gt(scaled, hn::Zero(df)), scaled);
    const auto shifted = hn::BitCast(d32, hn::Add(units_away, integer));
    const auto noisy = hn::Add(shifted, hn::PromoteTo(d32, hn::Load(d16, noise + i)));
    const auto value = hn::Min(hn::ShiftRight<16>(noisy), highest);
    hn::StoreU(hn::TruncateTo(d8, hn::Or(value, flags)), d8, codes + i);
  }
}

/// By `DerivativeEncoder::encode`.
HWY_INLINE void encode_derivatives(const GroupDerivatives& group, const uint16_t* noise, uint8_t* codes) {
  const Word32Tag d32;
  const hn::Rebind<uint16_t, Word32Tag> d16;
  const hn::Rebind<uint8_t, Word32Tag> d8;
  for (int64_t i = 0; i < kGroupElements; i += static_cast<int64_t>(hn::Lanes(d32))) {
    const auto noisy = hn::Add(hn::Load(d32, group.positions + i), hn::PromoteTo(d32, hn::Load(d16, noise + i)));
    // A byte has no room for what is left of 2^23.
    hn::StoreU(hn::TruncateTo(d8, hn::ShiftRight<16>(noisy)), d8, codes + i);
  }
}

/// Writes steps and words of a group's copies.
template <class Tag>
HWY_INLINE void pack_copies(const Forward<Tag>& forward, const GroupPlace& place, const GroupCopies& copies,
                            int64_t group, uint8_t* words) {
  const NormActForward& arguments = forward.arguments;
  const SplitSteps steps = split_steps(copies.above, copies.below, arguments.bits, arguments.type);
  std::memcpy(arguments.packed + group * static_cast<int64_t>(sizeof steps), &steps, sizeof steps);
  const SplitEncoder encoder(steps, arguments.bits, arguments.type);
  HWY_ALIGN uint16_t noise[kGroupElements];
  draw_noise(forward, first_counter(place), noise);
  HWY_ALIGN uint8_t codes[kGroupElements];
  if (forward.has_linear) {
    encode_group<true>(copies, encoder, noise, codes);
  } else {
    encode_group<false>(copies, encoder, noise, codes);
  }
  store_planes(codes, 0, arguments.bits, words);
}

template <class Tag>
HWY_INLINE void pack_derivatives(const Forward<Tag>& forward, const GroupPlace& place,
                                 const GroupDerivatives& derivatives, uint8_t* words) {
  HWY_ALIGN uint16_t noise[kGroupElements];
  draw_noise(forward, derivative_counter(first_counter(place)), noise);
  HWY_ALIGN uint8_t codes[kGroupElements];
  encode_derivatives(derivatives, noise, codes);
  store_planes(codes, kDerivativePlane, forward.arguments.derivative.bits, words);
}

/// Flattened: a call of code that is compiled for the baseline instruction set mixes instruction encodings.
template <class Element, class Store, ActivationFunction kFunction, class Tag>
HWY_FLATTEN void forward_group(const Forward<Tag>& forward, int64_t group) {
  constexpr bool kDerived = kFunction != ActivationFunction::kLeakyReLU;
  const NormActForward& arguments = forward.arguments;
  const GroupPlace place(arguments.layout, group);
  GroupCopies copies;
  std::conditional_t<kDerived, GroupDerivatives, Nothing> derivatives;
  if (place.is_cut()) {
    copies = {};  // code 0 for what there is not
    derivatives = {};
  }
  normalize_group<Element, Store, kFunction>(forward, place, copies, derivatives);
  uint8_t* words = forward.words + group * group_bytes(arguments.planes());
  if (arguments.bits != 0) {
    pack_copies(forward, place, copies, group, words);
  }
  if constexpr (kDerived) {
    if (arguments.derivative.bits != 0) {
      pack_derivatives(forward, place, derivatives, words + group_bytes(arguments.bits));
      if (arguments.bits == 0) {
        std::memset(arguments.packed + group * static_cast<int64_t>(sizeof(SplitSteps)), 0, sizeof(SplitSteps));
      }
    }
  }
}

template <class Element, class Store, ActivationFunction kFunction>
void forward_groups(const NormActForward& arguments, int64_t first, int64_t last) {
  with_tag(arguments.layout, [&]<class Tag>(Tag /*tag*/) {
    const Forward<Tag> forward(arguments);
    for (int64_t group = first; group < last; ++group) {
      forward_group<Element, Store, kFunction>(forward, group);
    }
  });
}

template <class Element>
void groups_of_function(const NormActForward& forward, int64_t first, int64_t last) {
  using enum ActivationFunction;
  if (forward.derivative.function == kReLU6) {
    return forward_groups<Element, StoreCached, kReLU6>(forward, first, last);
  }
  if (forward.derivative.function == kSiLU) {
    return forward_groups<Element, StoreCached, kSiLU>(forward, first, last);
  }
  if (forward.derivative.function == kHardswish) {
    return forward_groups<Element, StoreCached, kHardswish>(forward, first, last);
  }
  if (!forward.y) {
    return forward_groups<Element, StoreNothing, kLeakyReLU>(forward, first, last);
  }
  if (streams(forward.layout, forward.type, forward.y, {forward.x, forward.residual})) {
    forward_groups<Element, StoreStreaming, kLeakyReLU>(forward, first, last);
    hwy::FlushStream();
  } else {
    forward_groups<Element, StoreCached, kLeakyReLU>(forward, first, last);
  }
}

}  // namespace

void norm_act(const NormActForward& forward, int64_t first, int64_t last) {
  if (!has_whole_octets(forward.layout) || needs_reference(forward.derivative)) {
    return reference::norm_act(forward, first, last);
  }
  with_element_type(forward.type,
                    [&]<class Element>(Element /*tag*/) { groups_of_function<Element>(forward, first, last); });
}

#endif

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "src/cpu/dispatch.h"

namespace actnn::cpu {

HWY_EXPORT(norm_act);

void norm_act(const NormActForward& forward, int64_t first, int64_t last) {
  if (use_reference()) {
    return reference::norm_act(forward, first, last);
  }
  HWY_DYNAMIC_DISPATCH(norm_act)(forward, first, last);
}

}  // namespace actnn::cpu
#endif
