// Sums of floats in double precision. Included once per instruction set, as vector-inl.h.
#if defined(ACTNN_CPU_DOUBLE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_DOUBLE_INL_H_
#undef ACTNN_CPU_DOUBLE_INL_H_
#else
#define ACTNN_CPU_DOUBLE_INL_H_
#endif

#include "src/cpu/matrix-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// As many doubles as a vector has floats: one vector, or two of half as many.
template <class FloatsTag>
class Doubles {
 public:
  using Tag = hn::CappedTag<double, hn::MaxLanes(FloatsTag())>;
  static constexpr int64_t kLanes = hn::MaxLanes(Tag());
  static constexpr int64_t kParts = hn::MaxLanes(FloatsTag()) / kLanes;

  HWY_INLINE explicit Doubles(const double* p) {
    for (int64_t i = 0; i < kParts; ++i) {
      parts_[i] = hn::LoadU(Tag(), p + i * kLanes);
    }
  }
  HWY_INLINE explicit Doubles(hn::Vec<FloatsTag> floats) {
    if constexpr (kParts == 1) {
      parts_[0] = hn::PromoteTo(Tag(), floats);
    } else {
      const hn::Half<FloatsTag> half;
      parts_[0] = hn::PromoteTo(Tag(), hn::LowerHalf(half, floats));
      parts_[1] = hn::PromoteTo(Tag(), hn::UpperHalf(half, floats));
    }
  }

  HWY_INLINE void store(double* p) const {
    for (int64_t i = 0; i < kParts; ++i) {
      hn::StoreU(parts_[i], Tag(), p + i * kLanes);
    }
  }

  HWY_INLINE void add(const Doubles& other) {
    for (int64_t i = 0; i < kParts; ++i) {
      parts_[i] = hn::Add(parts_[i], other.parts_[i]);
    }
  }
  HWY_INLINE void subtract(const Doubles& other) {
    for (int64_t i = 0; i < kParts; ++i) {
      parts_[i] = hn::Sub(parts_[i], other.parts_[i]);
    }
  }
  /// Two roundings on every instruction set.
  HWY_INLINE void add_product(const Doubles& a, const Doubles& b) {
    for (int64_t i = 0; i < kParts; ++i) {
      parts_[i] = hn::Add(parts_[i], hn::Mul(a.parts_[i], b.parts_[i]));
    }
  }
  /// Of numbers that have been floats, whose product is exact: fused or not makes no difference.
  HWY_INLINE void add_exact_product(const Doubles& a, const Doubles& b) {
    for (int64_t i = 0; i < kParts; ++i) {
      parts_[i] = hn::MulAdd(a.parts_[i], b.parts_[i], parts_[i]);
    }
  }

 private:
  hn::Vec<Tag> parts_[kParts];
};

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
