#include <algorithm>
#include <vector>

#include "actnn/cpu/norm_act.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/norm_act_backward.cpp"
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/double-inl.h"
#include "src/cpu/norm_act-inl.h"
#include "src/cpu/saved_copies-inl.h"

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

/// Some rows of a vector of channels.
struct Run {
  int64_t index;  ///< of the first element
  int64_t channel;
  int64_t lanes;
};

/// A vector of elements.
struct Saved {
  FloatVector s;
  FloatMask side;
  FloatMask between;  ///< the jumps of the activation
};

/// The gradients that come back. Loops hold one by value: the compiler must think that every store changes what is in
/// memory.
template <class Element>
struct Gradients {
  const Element* first;
  const Element* second;  ///< null: none
  int64_t ahead;

  /// Their sum, of a vector of elements. Asks for those `ahead`: the processor does not foresee loads that are rows
  /// apart.
  HWY_INLINE FloatVector load(int64_t index, int64_t lanes) const {
    prefetch(first + index, ahead);
    auto gradient = load_lanes(first + index, lanes);
    if (second) {
      prefetch(second + index, ahead);
      gradient = hn::Add(gradient, load_lanes(second + index, lanes));
    }
    return gradient;
  }
};

/// What all pieces of a call share. `Map` says what is done with a channel, and of which kind it is.
template <class Element, ActivationFunction kFunction, class Map>
class Backward {
 public:
  Backward(const NormActBackward& backward, const Map* channels)
      : arguments_(backward), channels_(channels), maps_(channels, backward.layout.channels) {}

  HWY_INLINE FloatVector field(float Map::*member, const Run& run) const {
    return maps_.field(FloatTag(), member, run.channel);
  }

  HWY_INLINE BelowKink below_kink() const { return BelowKink(arguments_.activation.slope); }

  HWY_INLINE Gradients<Element> gradients() const {
    return {static_cast<const Element*>(arguments_.grad), static_cast<const Element*>(arguments_.second_grad),
            kHalfRows * arguments_.layout.channels};
  }

  /// dz of a vector of elements with that gradient of y, with z = a s + b.
  static HWY_INLINE FloatVector through_activation(FloatVector gradient, const Saved& saved, const BelowKink& below,
                                                   FloatVector a, FloatVector b) {
    using enum ActivationFunction;
    const FloatTag df;
    if constexpr (kFunction == kLeakyReLU) {
      return hn::IfThenElse(saved.side, gradient, below(gradient));
    } else if constexpr (kFunction == kReLU6) {
      return hn::IfThenElseZero(saved.between, gradient);
    } else if constexpr (kFunction == kIdentity) {
      return gradient;
    } else {
      const auto z = hn::Add(hn::Mul(a, saved.s), b);
      const auto derivative = activate_copy<kFunction>(df, z, saved.side, saved.between).derivative;
      return hn::IfThenZeroElse(hn::Eq(derivative, hn::Zero(df)), hn::Mul(derivative, gradient));
    }
  }

  /// y of a vector of copies of z.
  static HWY_INLINE FloatVector output(FloatVector z, const Saved& saved, const BelowKink& below) {
    if constexpr (kFunction == ActivationFunction::kReLU6) {
      const auto above = hn::IfThenElse(saved.between, z, hn::Set(FloatTag(), 6.0F));
      return canonical_nan(FloatTag(), hn::IfThenElse(hn::IsNaN(z), z, hn::IfThenElseZero(saved.side, above)));
    } else if constexpr (is_smooth(kFunction)) {
      return canonical_nan(FloatTag(), activate_copy<kFunction>(FloatTag(), z, saved.side, saved.between).y);
    } else {
      return activated<kFunction>(below, z, saved.side);
    }
  }

  /// Calls `body(run, rows)` for the runs of pieces [first, last); `rows(element)` calls `element(index, saved)` for
  /// each row of the run.
  template <class Body>
  void visit(int64_t first, int64_t last, Body&& body) const {
    SavedCopies<Element> copies(arguments_);
    for (int64_t i = first; i < last; ++i) {
      visit_piece(ColumnPiece(arguments_.layout, i), copies, body);
    }
  }

 private:
  template <class Body>
  HWY_INLINE void visit_piece(const ColumnPiece& piece, SavedCopies<Element>& copies, Body&& body) const {
    copies.begin_piece(piece, channels_);
    for (int64_t word = 0; word < piece.words(); ++word) {
      for (int half = 0; half < 2; ++half) {
        for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
          copies.find(piece, word, half, channel);
        }
        for (int64_t row = 0; row < kHalfRows; row += kRunRows) {
          for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
            visit_run(piece, word, half * kHalfRows + row, channel, copies, body);
          }
        }
      }
    }
  }

  /// Rows of a run. The more vectors there are in a cache line, the fewer: its parts are then written shortly one after
  /// the other, and what is written around the cache leaves the processor as whole lines.
  static constexpr int64_t kRunRows = kHalfRows * kLanes * static_cast<int64_t>(sizeof(Element)) / kCacheLine;
  static_assert(kRunRows >= 1 && kHalfRows % kRunRows == 0);

  template <class Body>
  HWY_INLINE void visit_run(const ColumnPiece& piece, int64_t word, int64_t row_of_word, int64_t channel,
                            const SavedCopies<Element>& copies, Body&& body) const {
    const FloatTag df;
    const Word32Tag d32;
    const int64_t first = word * kWordRows + row_of_word;
    const int64_t rows = std::min(kRunRows, piece.rows - first);
    const int64_t stride = arguments_.layout.channels;
    const Run run{(piece.first_row + first) * stride + piece.first_channel + channel, piece.first_channel + channel,
                  piece.channels - channel};
    const auto sides = copies.mask(0, word, channel);
    const auto between = copies.mask(1, word, channel);
    body(run, [=, &copies, index = run.index](const auto& element) {
      auto bit = hn::Set(d32, 1u << row_of_word);
      for (int64_t row = 0; row < rows; ++row) {
        element(index + row * stride,
                Saved{copies.row(row_of_word % kHalfRows + row, channel), hn::RebindMask(df, hn::TestBit(sides, bit)),
                      hn::RebindMask(df, hn::TestBit(between, bit))});
        bit = hn::ShiftLeft<1>(bit);
      }
    });
  }

  const NormActBackward& arguments_;
  const Map* channels_;
  ChannelMaps<Map> maps_;
};

template <class Element, ActivationFunction kFunction>
void add_sums(const NormActBackward& arguments, const DecodeMap* channels, int64_t first, int64_t last, double* sums,
              double* copy_sums) {
  using Pass = Backward<Element, kFunction, DecodeMap>;
  const Pass backward(arguments, channels);
  const int64_t count = arguments.layout.channels;
  // Room for whole vectors.
  std::vector<double> sum_of(static_cast<size_t>(count + kLanes));
  std::vector<double> copy_sum_of(static_cast<size_t>(count + kLanes));
  std::copy_n(sums, count, sum_of.begin());
  std::copy_n(copy_sums, count, copy_sum_of.begin());
  backward.visit(first, last, [&](const Run& run, auto&& rows) {
    const auto a = backward.field(&DecodeMap::a, run);
    const auto b = backward.field(&DecodeMap::b, run);
    const BelowKink below = backward.below_kink();
    const auto gradients = backward.gradients();
    const int64_t lanes = run.lanes;
    Doubles<FloatTag> sum(sum_of.data() + run.channel);
    Doubles<FloatTag> copy_sum(copy_sum_of.data() + run.channel);
    rows([&](int64_t index, const Saved& saved) {
      const Doubles<FloatTag> dz(Pass::through_activation(gradients.load(index, lanes), saved, below, a, b));
      sum.add(dz);
      copy_sum.add_exact_product(dz, Doubles<FloatTag>(saved.s));
    });
    sum.store(sum_of.data() + run.channel);
    copy_sum.store(copy_sum_of.data() + run.channel);
  });
  std::copy_n(sum_of.begin(), count, sums);
  std::copy_n(copy_sum_of.begin(), count, copy_sums);
}

/// `grad_sum` mostly is in the place of a gradient, so that its lines are in the cache.
template <class Element, ActivationFunction kFunction>
void input_gradients(const NormActBackward& arguments, const NormActGradient* channels, Element* grad_input,
                     Element* grad_sum, int64_t first, int64_t last, bool around_cache) {
  using Pass = Backward<Element, kFunction, NormActGradient>;
  const Pass backward(arguments, channels);
  backward.visit(first, last, [&](const Run& run, auto&& rows) {
    const auto scale = backward.field(&NormActGradient::scale, run);
    const auto of_copy = backward.field(&NormActGradient::of_copy, run);
    const auto shift = backward.field(&NormActGradient::shift, run);
    const auto a = backward.field(&NormActGradient::a, run);
    const auto b = backward.field(&NormActGradient::b, run);
    const BelowKink below = backward.below_kink();
    const auto gradients = backward.gradients();
    // Values, as the gradients.
    rows([=, lanes = run.lanes](int64_t index, const Saved& saved) {
      const auto dz = Pass::through_activation(gradients.load(index, lanes), saved, below, a, b);
      const auto sum = hn::Add(hn::Mul(scale, dz), hn::Mul(of_copy, saved.s));
      store_lanes(canonical_nan(FloatTag(), hn::Add(sum, shift)), grad_input + index, lanes, around_cache);
      if (grad_sum) {
        store_lanes(canonical_nan(FloatTag(), dz), grad_sum + index, lanes);
      }
    });
  });
}

template <class Element, ActivationFunction kFunction>
void outputs(const NormActBackward& arguments, const DecodeMap* channels, Element* y, int64_t first, int64_t last,
             bool around_cache) {
  using Pass = Backward<Element, kFunction, DecodeMap>;
  const Pass backward(arguments, channels);
  backward.visit(first, last, [&](const Run& run, auto&& rows) {
    const auto a = backward.field(&DecodeMap::a, run);
    const auto b = backward.field(&DecodeMap::b, run);
    const BelowKink below = backward.below_kink();
    rows([=, lanes = run.lanes](int64_t index, const Saved& saved) {
      const auto z = hn::Add(hn::Mul(a, saved.s), b);
      store_lanes(Pass::output(z, saved, below), y + index, lanes, around_cache);
    });
  });
}

/// Calls `body(Element(), around_cache)` with the way to write `result`.
template <class Body>
void with_store(const NormActBackward& backward, const void* result, Body&& body) {
  const bool around_cache = streams(backward.layout.rows, backward.layout.channels, backward.type, result,
                                    {backward.grad, backward.second_grad, backward.x});
  with_element_type(backward.type, [&](auto element) { body(element, around_cache); });
  if (around_cache) {
    hwy::FlushStream();
  }
}

}  // namespace

void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums) {
  if (needs_reference(backward.activation.function)) {
    return reference::norm_act_sums(backward, channels, first, last, sums, copy_sums);
  }
  const int64_t across = pieces_across(backward.layout);
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    with_function(backward.activation.function, [&]<ActivationFunction kFunction>() {
      add_sums<Element, kFunction>(backward, channels, first * across, last * across, sums, copy_sums);
    });
  });
}

void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last) {
  if (needs_reference(backward.activation.function)) {
    return reference::norm_act_input_gradient(backward, channels, grad_input, grad_sum, first, last);
  }
  with_store(backward, grad_input, [&]<class Element>(Element /*tag*/, bool around_cache) {
    with_function(backward.activation.function, [&]<ActivationFunction kFunction>() {
      input_gradients<Element, kFunction>(backward, channels, static_cast<Element*>(grad_input),
                                          static_cast<Element*>(grad_sum), first, last, around_cache);
    });
  });
}

void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last) {
  if (needs_reference(backward.activation.function)) {
    return reference::norm_act_output(backward, channels, y, first, last);
  }
  with_store(backward, y, [&]<class Element>(Element /*tag*/, bool around_cache) {
    with_function(backward.activation.function, [&]<ActivationFunction kFunction>() {
      outputs<Element, kFunction>(backward, channels, static_cast<Element*>(y), first, last, around_cache);
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
