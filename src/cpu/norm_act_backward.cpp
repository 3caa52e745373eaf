#include <cstring>
#include <utility>

#include "actnn/cpu/norm_act.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/norm_act_backward.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/activation-inl.h"
#include "src/cpu/double-inl.h"
#include "src/cpu/split-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums) {
  reference::norm_act_sums(backward, channels, first, last, sums, copy_sums);
}
void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last) {
  reference::norm_act_input_gradient(backward, channels, grad_input, grad_sum, first, last);
}
void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last) {
  reference::norm_act_output(backward, channels, y, first, last);
}

#else

namespace {

/// A group's grids in vectors.
template <class Tag>
struct VectorGrid {
  hn::Vec<Tag> above, minus_below, lowest, linear;

  HWY_INLINE explicit VectorGrid(const SplitGrid& grid)
      : above(hn::Set(Tag(), grid.above)),
        minus_below(hn::Set(Tag(), -grid.below)),
        lowest(hn::Set(Tag(), grid.lowest)),
        linear(hn::Set(Tag(), grid.linear)) {}

  /// By `SplitGrid::copy_at`.
  HWY_INLINE hn::Vec<Tag> decode(hn::Vec<hn::Rebind<uint32_t, Tag>> codes, hn::Mask<Tag> side,
                                 hn::Mask<Tag> is_linear) const {
    const auto number = hn::And(codes, hn::Set(hn::Rebind<uint32_t, Tag>(), kSideOfCode - 1u));
    const auto value = hn::ConvertTo(Tag(), hn::BitCast(hn::Rebind<int32_t, Tag>(), number));
    const auto split = hn::Mul(value, hn::IfThenElse(side, above, minus_below));
    return hn::IfThenElse(is_linear, hn::Add(hn::Mul(value, linear), lowest), split);
  }
};

/// What is known of the activation at a vector of elements: sides of the kink, and derivatives where it has some.
template <class Tag>
struct OfActivation {
  hn::Mask<Tag> side;
  hn::Vec<Tag> derivative;
};

/// What all groups of a call share. `Map` says what is done with a channel, and of which kind it is.
template <class Tag, class Element, class Map, bool kDerived>
class Backward {
 public:
  Backward(const NormActBackward& backward, const Map* channels)
      : arguments_(backward),
        maps_(channels, backward.layout.channels),
        maps_of_x_(backward.channels_of_x, backward.x ? backward.layout.channels : 0),
        words_(backward.packed ? backward.packed + codes_offset(backward.layout.groups()) : nullptr),
        kink_(backward.slope),
        ahead_(prefetch_distance(backward.layout)) {}

  HWY_INLINE hn::Vec<Tag> field(float Map::*member, const Strip& strip) const {
    return maps_.field(Tag(), member, strip.channel);
  }

  /// dz of a vector of elements.
  HWY_INLINE hn::Vec<Tag> gradient(int64_t index, const OfActivation<Tag>& of) const {
    auto gradient = load_ahead(Tag(), static_cast<const Element*>(arguments_.grad) + index, ahead_);
    if (arguments_.second_grad) {
      gradient =
          hn::Add(gradient, load_ahead(Tag(), static_cast<const Element*>(arguments_.second_grad) + index, ahead_));
    }
    if constexpr (kDerived) {
      const auto flat = hn::Eq(of.derivative, hn::Zero(Tag()));
      return hn::IfThenZeroElse(flat, hn::Mul(of.derivative, gradient));
    } else {
      return kink_.gradient(gradient, of.side);
    }
  }

  /// y of a vector of copies of z; of activations with derivatives, ReLU6's.
  HWY_INLINE hn::Vec<Tag> output(hn::Vec<Tag> z, const OfActivation<Tag>& of) const {
    if constexpr (kDerived) {
      const auto on_slope = hn::Ne(of.derivative, hn::Zero(Tag()));
      const auto above = hn::IfThenElse(on_slope, z, hn::Set(Tag(), 6.0F));
      return hn::IfThenElse(hn::IsNaN(z), z, hn::IfThenElseZero(of.side, above));
    } else {
      return kink_.activated(z, of.side);
    }
  }

  /// Calls `body(strip, rows)` for the strips of groups [first, last); `rows(element)` calls `element(index, of
  /// activation, s)` for each of the strip's rows.
  template <class Body>
  void visit(int64_t first, int64_t last, Body&& body) const {
    for (int64_t group = first; group < last; ++group) {
      if (arguments_.x) {
        visit_group<true>(group, body);
      } else {
        visit_group<false>(group, body);
      }
    }
  }

 private:
  /// Flattened: a call of code that is compiled for the baseline instruction set mixes instruction encodings.
  template <bool kFromX, class Body>
  HWY_FLATTEN void visit_group(int64_t group, Body&& body) const {
    const Tag df;
    const hn::Rebind<uint32_t, Tag> d32;
    const hn::Rebind<uint8_t, Tag> d8;
    const VectorGrid<Tag> grid(grid_of<kFromX>(group));
    const auto* x = static_cast<const Element*>(arguments_.x);
    HWY_ALIGN uint8_t codes[kGroupElements];
    load_codes<kFromX>(group, codes);
    HWY_ALIGN uint8_t derivatives[kGroupElements];
    if constexpr (kDerived) {
      load_planes(words_ + group * group_bytes(arguments_.planes()) + group_bytes(arguments_.bits), kDerivativePlane,
                  arguments_.derivative.bits, derivatives);
    }
    GroupPlace(arguments_.layout, group).for_each_strip(df, [&](const Strip& strip) {
      const auto zero = hn::Zero(df);
      const auto is_linear = maps_.is_linear(df, strip.channel);
      const auto s_scale = kFromX ? maps_of_x_.field(df, &NormActChannel::s_scale, strip.channel) : zero;
      const auto s_shift = kFromX ? maps_of_x_.field(df, &NormActChannel::s_shift, strip.channel) : zero;
      body(strip, [&](auto&& element) {
        for (int64_t j = 0; j < strip.rows; ++j) {
          const int64_t index = strip.index + j * strip.stride;
          const auto code = hn::PromoteTo(d32, load_row(d8, codes + strip.place + j * kOctet));
          const auto side = hn::RebindMask(df, hn::TestBit(code, hn::Set(d32, uint32_t{kSideOfCode})));
          OfActivation<Tag> of{side, zero};
          if constexpr (kDerived) {
            of.derivative = derivative(hn::PromoteTo(d32, load_row(d8, derivatives + strip.place + j * kOctet)));
          }
          if constexpr (kFromX) {
            element(index, of, hn::Add(hn::Mul(s_scale, load_ahead(df, x + index, ahead_)), s_shift));
          } else {
            element(index, of, grid.decode(code, side, is_linear));
          }
        }
      });
    });
  }

  /// By `DerivativeGrid::decode`.
  HWY_INLINE hn::Vec<Tag> derivative(hn::Vec<hn::Rebind<uint32_t, Tag>> codes) const {
    const DerivativeGrid grid(arguments_.derivative);
    const auto value = hn::ConvertTo(Tag(), hn::BitCast(hn::Rebind<int32_t, Tag>(), codes));
    return hn::MulAdd(value, hn::Set(Tag(), grid.step), hn::Set(Tag(), grid.lowest));
  }

  /// The grid of packed copies; one of no copies if they come from x, which perhaps has none packed.
  template <bool kFromX>
  SplitGrid grid_of(int64_t group) const {
    SplitSteps steps{};
    if constexpr (kFromX) {
      return {steps, kMinSplitBits, arguments_.type};
    }
    std::memcpy(&steps, arguments_.packed + group * static_cast<int64_t>(sizeof steps), sizeof steps);
    return {steps, arguments_.bits, arguments_.type};
  }

  /// Only the sides if the copies come from x; all are above 0 if none are packed.
  template <bool kFromX>
  HWY_INLINE void load_codes(int64_t group, uint8_t* codes) const {
    if (!words_ || arguments_.bits == 0) {
      std::memset(codes, kSideOfCode, kGroupElements);
    } else {
      load_planes(words_ + group * group_bytes(arguments_.planes()), 0, kFromX ? 1 : arguments_.bits, codes);
    }
  }

  const NormActBackward& arguments_;
  ChannelMaps<Map> maps_;
  ChannelMaps<NormActChannel> maps_of_x_;
  const uint8_t* words_;
  Kink<Tag> kink_;
  int64_t ahead_;
};

template <class Element, bool kDerived, class Tag>
void add_sums(Tag /*tag*/, const NormActBackward& arguments, const DecodeMap* channels, int64_t first, int64_t last,
              double* sums, double* copy_sums) {
  const Backward<Tag, Element, DecodeMap, kDerived> backward(arguments, channels);
  backward.visit(first, last, [&](const Strip& strip, auto&& rows) {
    Doubles<Tag> sum(sums + strip.channel);
    Doubles<Tag> copy_sum(copy_sums + strip.channel);
    rows([&](int64_t index, const OfActivation<Tag>& of, hn::Vec<Tag> s) {
      const Doubles<Tag> dz(backward.gradient(index, of));
      sum.add(dz);
      copy_sum.add_product(dz, Doubles<Tag>(s));
    });
    sum.store(sums + strip.channel);
    copy_sum.store(copy_sums + strip.channel);
  });
}

/// `grad_sum` mostly is in the place of a gradient, so that its lines are in the cache.
template <class Store, bool kDerived, class Element, class Tag>
void input_gradients(Tag df, const NormActBackward& arguments, const NormActGradient* channels, Element* grad_input,
                     Element* grad_sum, int64_t first, int64_t last) {
  const Backward<Tag, Element, NormActGradient, kDerived> backward(arguments, channels);
  backward.visit(first, last, [&](const Strip& strip, auto&& rows) {
    const auto scale = backward.field(&NormActGradient::scale, strip);
    const auto of_copy = backward.field(&NormActGradient::of_copy, strip);
    const auto shift = backward.field(&NormActGradient::shift, strip);
    rows([&](int64_t index, const OfActivation<Tag>& of, hn::Vec<Tag> s) {
      const auto dz = backward.gradient(index, of);
      const auto sum = hn::Add(hn::Mul(scale, dz), hn::Mul(of_copy, s));
      store_floats(df, canonical_nan(df, hn::Add(sum, shift)), grad_input + index, Store());
      if (grad_sum) {
        store_floats(df, canonical_nan(df, dz), grad_sum + index, StoreCached());
      }
    });
  });
}

template <class Store, bool kDerived, class Element, class Tag>
void outputs(Tag df, const NormActBackward& arguments, const DecodeMap* channels, Element* y, int64_t first,
             int64_t last) {
  const Backward<Tag, Element, DecodeMap, kDerived> backward(arguments, channels);
  backward.visit(first, last, [&](const Strip& strip, auto&& rows) {
    const auto a = backward.field(&DecodeMap::a, strip);
    const auto b = backward.field(&DecodeMap::b, strip);
    rows([&](int64_t index, const OfActivation<Tag>& of, hn::Vec<Tag> s) {
      const auto z = hn::Add(hn::Mul(a, s), b);
      store_floats(df, canonical_nan(df, backward.output(z, of)), y + index, Store());
    });
  });
}

/// Calls `body.operator()<Store, kDerived>()` with the way to write `result`.
template <class Body>
HWY_INLINE void with_store(const NormActBackward& backward, const void* result, Body&& body) {
  if (backward.derivative.function != ActivationFunction::kLeakyReLU) {
    body.template operator()<StoreCached, true>();
  } else if (streams(backward.layout, backward.type, result, {backward.grad, backward.second_grad, backward.x})) {
    body.template operator()<StoreStreaming, false>();
    hwy::FlushStream();
  } else {
    body.template operator()<StoreCached, false>();
  }
}

bool is_for_reference(const NormActBackward& backward) {
  return !has_whole_octets(backward.layout) || needs_reference(backward.derivative);
}

}  // namespace

void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums) {
  if (is_for_reference(backward)) {
    return reference::norm_act_sums(backward, channels, first, last, sums, copy_sums);
  }
  const int64_t blocks = backward.layout.channel_blocks();
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    with_tag(backward.layout, [&](auto df) {
      if (backward.derivative.function != ActivationFunction::kLeakyReLU) {
        add_sums<Element, true>(df, backward, channels, first * blocks, last * blocks, sums, copy_sums);
      } else {
        add_sums<Element, false>(df, backward, channels, first * blocks, last * blocks, sums, copy_sums);
      }
    });
  });
}

void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last) {
  if (is_for_reference(backward)) {
    return reference::norm_act_input_gradient(backward, channels, grad_input, grad_sum, first, last);
  }
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    with_store(backward, grad_input, [&]<class Store, bool kDerived>() {
      with_tag(backward.layout, [&](auto df) {
        input_gradients<Store, kDerived>(df, backward, channels, static_cast<Element*>(grad_input),
                                         static_cast<Element*>(grad_sum), first, last);
      });
    });
  });
}

void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last) {
  if (is_for_reference(backward)) {
    return reference::norm_act_output(backward, channels, y, first, last);
  }
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    with_store(backward, y, [&]<class Store, bool kDerived>() {
      with_tag(backward.layout, [&](auto df) {
        outputs<Store, kDerived>(df, backward, channels, static_cast<Element*>(y), first, last);
      });
    });
  });
}

#endif

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "src/cpu/dispatch.h"

namespace actnn::cpu {

HWY_EXPORT(norm_act_sums);
HWY_EXPORT(norm_act_input_gradient);
HWY_EXPORT(norm_act_output);

void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums) {
  if (use_reference()) {
    return reference::norm_act_sums(backward, channels, first, last, sums, copy_sums);
  }
  HWY_DYNAMIC_DISPATCH(norm_act_sums)(backward, channels, first, last, sums, copy_sums);
}

void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last) {
  if (use_reference()) {
    return reference::norm_act_input_gradient(backward, channels, grad_input, grad_sum, first, last);
  }
  HWY_DYNAMIC_DISPATCH(norm_act_input_gradient)(backward, channels, grad_input, grad_sum, first, last);
}

void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last) {
  if (use_reference()) {
    return reference::norm_act_output(backward, channels, y, first, last);
  }
  HWY_DYNAMIC_DISPATCH(norm_act_output)(backward, channels, y, first, last);
}

}  // namespace actnn::cpu
#endif
