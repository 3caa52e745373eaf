// The first pass of a normalization with activation over elements: y, copies before they are codes, and what is known
// of them. Included once per instruction set (Highway's foreach_target), hence the toggling include guard instead of
// #pragma once.
#if defined(ACTNN_CPU_NORMALIZATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_NORMALIZATION_INL_H_
#undef ACTNN_CPU_NORMALIZATION_INL_H_
#else
#define ACTNN_CPU_NORMALIZATION_INL_H_
#endif

#include <cstdint>

#include "src/cpu/norm_act-inl.h"
#include "src/cpu/piece_encoder-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// What all pieces of a call share.
struct Forward {
  const NormActForward& arguments;
  ChannelMaps<NormActChannel> maps;
  bool around_cache;  ///< is y written
  RowBits row_bits;

  explicit Forward(const NormActForward& forward)
      : arguments(forward),
        maps(forward.channels, forward.layout.channels),
        around_cache(forward.y && streams(forward.layout.rows, forward.layout.channels, forward.type, forward.y,
                                          {forward.x, forward.residual})) {}

  HWY_INLINE FloatVector field(float NormActChannel::*member, int64_t channel) const {
    return maps.field(FloatTag(), member, channel);
  }
  bool is_split(int64_t channel) const {
    return arguments.layout.masks != 0 && arguments.channels[channel].linear == 0.0F;
  }
};

/// Rows that are worked on together: what is asked about a call is asked once for them, and as many fit into registers.
inline constexpr int kRowsTogether = 4;
static_assert(kOctet % kRowsTogether == 0);

/// What the first pass finds in some rows of a vector of channels.
struct Found {
  ChannelRanges ranges;
  Word32Vector sides;
  Word32Vector between;
};

/// The first pass over a vector of channels.
template <class Element, ActivationFunction kFunction>
class Normalization {
 public:
  HWY_INLINE Normalization(const Forward& forward, int64_t channel)
      : forward_(forward),
        z_scale_(forward.field(&NormActChannel::z_scale, channel)),
        z_shift_(forward.field(&NormActChannel::z_shift, channel)),
        s_scale_(forward.field(&NormActChannel::s_scale, channel)),
        s_shift_(forward.field(&NormActChannel::s_shift, channel)),
        linear_(hn::Ne(forward.field(&NormActChannel::linear, channel), hn::Zero(FloatTag()))),
        kept_below_(
            hn::Ne(hn::Set(FloatTag(), forward.arguments.keeps(/*side=*/false) ? 1.0F : 0.0F), hn::Zero(FloatTag()))),
        below_(forward.arguments.activation.slope) {}

  /// Over kRows rows, from number `row` of a word on, whose elements of `lanes` channels begin at `begin`. Elements
  /// `ahead` are asked for. Writes copies to `out`.
  template <int kRows>
  HWY_INLINE void add_rows(int64_t begin, int64_t lanes, int64_t ahead, int row, Found& found,
                           float* HWY_RESTRICT out) const {
    const FloatTag df;
    const Word32Tag d32;
    const NormActForward& arguments = forward_.arguments;
    const int64_t stride = arguments.layout.channels;
    const auto* elements = static_cast<const Element*>(arguments.x) + begin;
    const auto zeros = hn::Zero(df);
    FloatVector x[kRows];
    FloatVector z[kRows];
    for (int i = 0; i < kRows; ++i) {
      prefetch(elements + i * stride, ahead);
      x[i] = load_lanes(elements + i * stride, lanes);
      z[i] = hn::Add(hn::Mul(z_scale_, x[i]), z_shift_);
    }
    if (arguments.residual) {
      const auto* residual = static_cast<const Element*>(arguments.residual) + begin;
      for (int i = 0; i < kRows; ++i) {
        prefetch(residual + i * stride, ahead);
        z[i] = hn::Add(z[i], load_lanes(residual + i * stride, lanes));
      }
    }
    if (arguments.y) {
      auto* y = static_cast<Element*>(arguments.y) + begin;
      const bool around_cache = forward_.around_cache;
      for (int i = 0; i < kRows; ++i) {
        store_lanes(activated<kFunction>(below_, z[i], hn::Gt(z[i], zeros)), y + i * stride, lanes, around_cache);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      const auto bit = forward_.row_bits.of_row(row + i);
      const auto side = hn::Gt(z[i], zeros);
      found.sides = hn::IfThenElse(hn::RebindMask(d32, side), hn::Or(found.sides, bit), found.sides);
      if constexpr (mask_count(kFunction) > 1) {
        constexpr Jumps kJumps = jumps_of(kFunction);
        const auto between = hn::And(hn::Gt(z[i], hn::Set(df, kJumps.above)), hn::Lt(z[i], hn::Set(df, kJumps.below)));
        found.between = hn::IfThenElse(hn::RebindMask(d32, between), hn::Or(found.between, bit), found.between);
      }
    }
    if (arguments.layout.bits == 0) {
      return;
    }
    for (int i = 0; i < kRows; ++i) {
      const auto side = hn::Gt(z[i], zeros);
      const auto copy = hn::Add(hn::Mul(s_scale_, hn::IfThenElse(linear_, x[i], z[i])), s_shift_);
      const auto s = hn::IfThenElseZero(hn::Or(side, kept_below_), copy);
      found.ranges.add(s);
      hn::Store(s, df, out + i * kLanes);
    }
  }

 private:
  const Forward& forward_;
  FloatVector z_scale_;
  FloatVector z_shift_;
  FloatVector s_scale_;
  FloatVector s_shift_;
  FloatMask linear_;
  FloatMask kept_below_;
  BelowKink below_;
};

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
