#include "actnn/cpu/norm_act.h"

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/norm_act.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/split-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void norm_act(const NormActForward& forward, int64_t first, int64_t last) { reference::norm_act(forward, first, last); }

#else

namespace {

/// What all groups of a call share.
struct Forward {
  const NormActForward& arguments;
  std::vector<MapOctet<NormActChannel>> maps;
  PhiloxKeys keys;
  Bend bend;
  uint8_t* words;  ///< of group 0

  explicit Forward(const NormActForward& forward)
      : arguments(forward),
        maps(octets_of(forward.channels, forward.layout.channels)),
        keys(forward.random.seed),
        bend(forward.slope),
        words(forward.packed + codes_offset(forward.layout.groups())) {}
};

/// The maps of one vector of channels.
struct ForwardMap {
  OctetVector z_scale, z_shift, s_scale, s_shift;
  OctetMask linear;

  HWY_INLINE ForwardMap(const MapOctet<NormActChannel>& octet, int64_t k)
      : z_scale(octet.field(0, k)),
        z_shift(octet.field(1, k)),
        s_scale(octet.field(2, k)),
        s_shift(octet.field(3, k)),
        linear(hn::Ne(octet.field(4, k), hn::Zero(OctetTag()))) {}
};

/// A group's elements before they are codes, in the order of the bits of its words.
struct GroupCopies {
  HWY_ALIGN float copies[kGroupElements];
  HWY_ALIGN uint32_t sides[kGroupElements];  ///< kSideOfCode above 0
  float above;                               ///< the largest distance from 0; NaN or infinite if one of any side is
  float below;
};

/// Writes y of a group and finds its copies.
template <class Element, class Store>
HWY_INLINE void normalize_group(const Forward& forward, const GroupPlace& place, GroupCopies& group) {
  const OctetTag df;
  const OctetWordTag d32;
  const NormActForward& arguments = forward.arguments;
  const auto* x = static_cast<const Element*>(arguments.x);
  const auto* residual = static_cast<const Element*>(arguments.residual);
  auto* y = static_cast<Element*>(arguments.y);
  const auto zero = hn::Zero(df);
  const auto drops_below = hn::MaskFromVec(hn::BitCast(df, hn::Set(d32, arguments.keeps_below ? 0u : ~0u)));
  auto highest = zero;
  auto lowest = zero;
  auto finite = zero;  // until an infinity or NaN makes it NaN
  place.for_each_lane([&](const LaneRows& lane) {
    for (int64_t k = 0; k < kOctet; k += kOctetStep) {
      const ForwardMap map(forward.maps[static_cast<size_t>(lane.channel / kOctet)], k);
      for (int64_t j = 0; j < lane.rows; ++j) {
        const int64_t index = lane.index + j * place.stride() + k;
        const int64_t bit = lane.place + j * kOctet + k;
        const auto input = load_floats(df, x + index);
        auto z = hn::Add(hn::Mul(map.z_scale, input), map.z_shift);
        if (residual) {
          z = hn::Add(z, load_floats(df, residual + index));
        }
        const auto side = hn::Gt(z, zero);
        store_floats(df, canonical_nan(df, forward.bend.activated(z, side)), y + index, Store());
        auto s = hn::Add(hn::Mul(map.s_scale, hn::IfThenElse(map.linear, input, z)), map.s_shift);
        finite = hn::MulAdd(s, zero, finite);
        s = hn::IfThenZeroElse(hn::AndNot(side, drops_below), s);
        highest = hn::Max(highest, s);
        lowest = hn::Min(lowest, s);
        hn::Store(s, df, group.copies + bit);
        hn::Store(hn::IfThenElseZero(hn::RebindMask(d32, side), hn::Set(d32, uint32_t{kSideOfCode})), d32,
                  group.sides + bit);
      }
    }
  });
  const float not_finite = hn::GetLane(hn::SumOfLanes(df, finite));
  group.above = hn::GetLane(hn::MaxOfLanes(df, highest)) + not_finite;
  group.below = not_finite - hn::GetLane(hn::MinOfLanes(df, lowest));
}

/// Noise of a group: 8 numbers an octet, `pitch` octets a row.
struct GroupNoise {
  HWY_ALIGN uint16_t numbers[kGroupElements];
  int64_t pitch;

  /// One block's rows are read as a whole, of which the octets follow each other; else they are 8 octets each.
  HWY_INLINE void draw(const Forward& forward, const GroupPlace& place) {
    const int64_t octets = place.layout.row_octets();
    const auto first = static_cast<uint64_t>(place.row * octets + place.channel / kOctet);
    pitch = std::min<int64_t>(octets, kSplitLanes);
    const auto counter_of = [&](int64_t i) {
      return first + static_cast<uint64_t>(i / kSplitLanes * octets + i % kSplitLanes);
    };
    auto* words = reinterpret_cast<uint32_t*>(numbers);
    if (octets <= kSplitLanes) {
      philox_blocks(forward.keys, forward.arguments.random.offset, first, place.rows * octets, words);
    } else {
      philox_runs(forward.keys, forward.arguments.random.offset, counter_of, place.rows * kSplitLanes, words);
    }
  }
  HWY_INLINE void round_to_nearest(int bits) {
    std::fill_n(numbers, kGroupElements, static_cast<uint16_t>(half_step(bits - 1)));
    pitch = 0;
  }
};

/// A group's encoder in vectors.
struct VectorEncoder {
  OctetVector lowest, linear, above, below;
  hn::Vec<OctetWordTag> highest;

  HWY_INLINE explicit VectorEncoder(const SplitEncoder& encoder)
      : lowest(hn::Set(OctetTag(), encoder.grid.lowest)),
        linear(hn::Set(OctetTag(), encoder.linear)),
        above(hn::Set(OctetTag(), encoder.above)),
        below(hn::Set(OctetTag(), encoder.below)),
        highest(hn::Set(OctetWordTag(), encoder.highest)) {}

  /// Values, by `SplitEncoder::encode`.
  HWY_INLINE hn::Vec<OctetWordTag> encode(OctetVector s, OctetMask side, OctetMask is_linear,
                                          hn::Vec<OctetWordTag> noise) const {
    const OctetTag df;
    const OctetWordTag d32;
    const auto split_distance = hn::IfThenElse(side, s, hn::Neg(s));
    const auto distance = hn::IfThenElse(is_linear, hn::Sub(s, lowest), split_distance);
    const auto scale = hn::IfThenElse(is_linear, linear, hn::IfThenElse(side, above, below));
    const auto scaled = hn::Mul(distance, scale);
    const auto units_away = hn::IfThenElseZero(hn::Gt(scaled, hn::Zero(df)), scaled);
    const auto shifted = hn::BitCast(d32, hn::Add(units_away, hn::Set(df, kIntegerInMantissa)));
    const auto position = hn::Sub(shifted, hn::Set(d32, bits_of(kIntegerInMantissa)));
    return hn::Min(hn::ShiftRight<16>(hn::Add(position, noise)), highest);
  }
};

/// Writes the words of a group.
HWY_INLINE void encode_group(const Forward& forward, const GroupPlace& place, const GroupCopies& group,
                             const SplitEncoder& scalar_encoder, const GroupNoise& noise, uint8_t* words) {
  const OctetTag df;
  const OctetWordTag d32;
  const hn::Rebind<uint16_t, OctetTag> d16;
  const hn::Rebind<uint8_t, OctetTag> d8;
  const VectorEncoder encoder(scalar_encoder);
  HWY_ALIGN uint8_t codes[kGroupElements];
  if (place.is_cut()) {
    std::fill_n(codes, kGroupElements, uint8_t{0});
  }
  const int64_t noise_stride = place.layout.lane_rows_apart() * noise.pitch * kOctet;
  place.for_each_lane([&](const LaneRows& lane) {
    const uint16_t* numbers =
        noise.numbers + lane.row * noise.pitch * kOctet + (noise.pitch == 0 ? 0 : lane.channel - place.channel);
    for (int64_t k = 0; k < kOctet; k += kOctetStep) {
      const ForwardMap map(forward.maps[static_cast<size_t>(lane.channel / kOctet)], k);
      for (int64_t j = 0; j < lane.rows; ++j) {
        const int64_t bit = lane.place + j * kOctet + k;
        const auto side = hn::Load(d32, group.sides + bit);
        const auto random = hn::PromoteTo(d32, hn::LoadU(d16, numbers + j * noise_stride + k));
        const auto value = encoder.encode(hn::Load(df, group.copies + bit),
                                          hn::RebindMask(df, hn::Ne(side, hn::Zero(d32))), map.linear, random);
        hn::StoreU(hn::TruncateTo(d8, hn::Or(value, side)), d8, codes + bit);
      }
    }
  });
  store_planes(codes, forward.arguments.bits, words);
}

/// Flattened: a call of code that is compiled for the baseline instruction set mixes instruction encodings.
template <class Element, class Store>
HWY_FLATTEN void forward_group(const Forward& forward, int64_t group) {
  const NormActForward& arguments = forward.arguments;
  const GroupPlace place(arguments.layout, group);
  GroupCopies copies;
  normalize_group<Element, Store>(forward, place, copies);
  if (arguments.bits == 0) {
    return;
  }
  GroupNoise noise;
  if (arguments.stochastic) {
    noise.draw(forward, place);
  } else {
    noise.round_to_nearest(arguments.bits);
  }
  const SplitSteps steps = split_steps(copies.above, copies.below, arguments.bits, arguments.type);
  std::memcpy(arguments.packed + group * static_cast<int64_t>(sizeof steps), &steps, sizeof steps);
  const SplitEncoder encoder(steps, arguments.bits, arguments.type);
  encode_group(forward, place, copies, encoder, noise, forward.words + group * group_bytes(arguments.bits));
}

template <class Element, class Store>
void forward_groups(const NormActForward& arguments, int64_t first, int64_t last) {
  const Forward forward(arguments);
  for (int64_t group = first; group < last; ++group) {
    forward_group<Element, Store>(forward, group);
  }
}

}  // namespace

void norm_act(const NormActForward& forward, int64_t first, int64_t last) {
  if (!has_whole_octets(forward.layout)) {
    return reference::norm_act(forward, first, last);
  }
  with_element_type(forward.type, [&]<class Element>(Element /*tag*/) {
    if (streams(forward.layout, forward.type, forward.y, {forward.x, forward.residual})) {
      forward_groups<Element, StoreStreaming>(forward, first, last);
      hwy::FlushStream();
    } else {
      forward_groups<Element, StoreCached>(forward, first, last);
    }
  });
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
