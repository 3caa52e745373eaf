// Vector building blocks shared by the CPU kernels. Included once per instruction set (Highway's foreach_target), hence the
// toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_VECTOR_INL_H_
#undef ACTNN_CPU_VECTOR_INL_H_
#else
#define ACTNN_CPU_VECTOR_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/philox.h"
#include "actnn/core/scalar_types.h"

// The scalar target has one lane, which the 64-bit formulation below cannot use: there, kernels call the reference.
#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using Word32Tag = hn::ScalableTag<uint32_t>;
using Word64Tag = hn::ScalableTag<uint64_t>;

/// Elements handled together: a whole number of vectors for every instruction set, and one mask word.
inline constexpr int64_t kBlock = 64;
inline constexpr int64_t kBlockOctets = kBlock / kOctet;

/// Philox blocks at counters first, first + 1, ..., first + count - 1, written in order as 4 words each. `count` is a
/// multiple of 8.
///
/// A counter occupies a 64-bit lane per word, of which the low 32 bits count: the products of a round then need no shuffle,
/// since a multiplication reads only low halves. Counters are dealt to lanes such that interleaving the two halves of the
/// results gives consecutive blocks.
HWY_INLINE void philox_blocks(const RandomState& random, uint64_t first, int64_t count, uint32_t* HWY_RESTRICT words) {
  const Word64Tag d64;
  const Word32Tag d32;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d64));
  const auto half = static_cast<uint64_t>(lanes / 2);
  HWY_ALIGN uint64_t order[hn::MaxLanes(d64)];
  for (uint64_t i = 0; i < static_cast<uint64_t>(lanes); ++i) {
    order[i] = (i % 2) * half + i / 2;
  }
  const auto lane_counter = hn::Load(d64, order);
  const auto multiplier0 = hn::Set(d32, kPhiloxMultiplier0);
  const auto multiplier1 = hn::Set(d32, kPhiloxMultiplier1);
  const auto start2 = hn::Set(d64, random.offset & 0xFFFFFFFFu);
  const auto start3 = hn::Set(d64, random.offset >> 32);

  for (int64_t i = 0; i < count; i += lanes) {
    const auto counter = hn::Add(hn::Set(d64, first + static_cast<uint64_t>(i)), lane_counter);
    auto x0 = counter;
    auto x1 = hn::ShiftRight<32>(counter);
    auto x2 = start2;
    auto x3 = start3;
    auto key0 = static_cast<uint32_t>(random.seed);
    auto key1 = static_cast<uint32_t>(random.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const auto product0 = hn::MulEven(hn::BitCast(d32, x0), multiplier0);
      const auto product1 = hn::MulEven(hn::BitCast(d32, x2), multiplier1);
      x0 = hn::Xor3(hn::ShiftRight<32>(product1), x1, hn::Set(d64, uint64_t{key0}));
      x1 = product1;
      x2 = hn::Xor3(hn::ShiftRight<32>(product0), x3, hn::Set(d64, uint64_t{key1}));
      x3 = product0;
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
    const auto low_half = hn::Set(d64, 0xFFFFFFFFu);
    const auto words01 = hn::Or(hn::And(x0, low_half), hn::ShiftLeft<32>(x1));
    const auto words23 = hn::Or(hn::And(x2, low_half), hn::ShiftLeft<32>(x3));
    auto* out = words + i * 4;
    hn::StoreU(hn::BitCast(d32, hn::InterleaveLower(d64, words01, words23)), d32, out);
    hn::StoreU(hn::BitCast(d32, hn::InterleaveUpper(d64, words01, words23)), d32, out + hn::Lanes(d32));
  }
}

/// Loads one vector of elements as floats.
HWY_INLINE hn::Vec<FloatTag> load_floats(const float* p) { return hn::LoadU(FloatTag(), p); }

HWY_INLINE hn::Vec<FloatTag> load_floats(const BFloat16* p) {
  const Word32Tag d32;
  const hn::Rebind<uint16_t, Word32Tag> d16;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(FloatTag(), hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

HWY_INLINE hn::Vec<FloatTag> load_floats(const Float16* p) {
  const FloatTag df;
  const Word32Tag d32;
#if HWY_TARGET <= HWY_AVX2
  const hn::Rebind<hwy::float16_t, FloatTag> d16;
  (void)d32;
  return hn::PromoteTo(df, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
#else
  const hn::Rebind<uint16_t, Word32Tag> d16;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(d32, 0x8000u)));
  const auto magnitude = hn::And(bits, hn::Set(d32, 0x7FFFu));
  // A float with these bits is the value times 2^-112, exactly, also for subnormals.
  const auto value = hn::Mul(hn::BitCast(df, hn::ShiftLeft<13>(magnitude)), hn::Set(df, 0x1p112F));
  const auto special = hn::Gt(magnitude, hn::Set(d32, 0x7BFFu));
  const auto special_bits = hn::Or(hn::ShiftLeft<13>(magnitude), hn::Set(d32, 0x7F800000u));
  return hn::BitCast(df, hn::Or(sign, hn::IfThenElse(special, special_bits, hn::BitCast(d32, value))));
#endif
}

/// Writes through the cache.
struct StoreCached {
  template <class V, class D, class T>
  HWY_INLINE void operator()(V v, D d, T* p) const {
    hn::StoreU(v, d, p);
  }
};

/// Writes around the cache, for results too large to stay in it: saves reading the lines that are overwritten. `p` must be
/// aligned to a vector; a later reader in another thread needs hwy::FlushStream.
struct StoreStreaming {
  template <class V, class D, class T>
  HWY_INLINE void operator()(V v, D d, T* p) const {
    hn::Stream(v, d, p);
  }
};

/// Stores one vector of floats as elements, rounded to nearest even. A NaN must be the canonical one (kNanFloat32).
template <class Store = StoreCached>
HWY_INLINE void store_floats(hn::Vec<FloatTag> values, float* p, Store store = {}) {
  store(values, FloatTag(), p);
}

template <class Store = StoreCached>
HWY_INLINE void store_floats(hn::Vec<FloatTag> values, BFloat16* p, Store store = {}) {
  const Word32Tag d32;
  const hn::Rebind<uint16_t, Word32Tag> d16;
  const auto bits = hn::BitCast(d32, values);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7FFFu))));
  store(hn::TruncateTo(d16, rounded), d16, reinterpret_cast<uint16_t*>(p));
}

template <class Store = StoreCached>
HWY_INLINE void store_floats(hn::Vec<FloatTag> values, Float16* p, Store store = {}) {
#if HWY_TARGET <= HWY_AVX2
  const hn::Rebind<hwy::float16_t, FloatTag> d16;
  store(hn::DemoteTo(d16, values), d16, reinterpret_cast<hwy::float16_t*>(p));
#else
  const FloatTag df;
  const Word32Tag d32;
  const hn::Rebind<uint16_t, Word32Tag> d16;
  const auto bits = hn::BitCast(d32, values);
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 0x8000u));
  const auto magnitude = hn::And(bits, hn::Set(d32, 0x7FFFFFFFu));
  const auto half = hn::Set(df, 0.5F);
  const auto subnormal = hn::Sub(hn::BitCast(d32, hn::Add(hn::BitCast(df, magnitude), half)), hn::BitCast(d32, half));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(d32, 1u));
  const auto normal =
      hn::ShiftRight<13>(hn::Sub(hn::Add(magnitude, hn::Add(odd, hn::Set(d32, 0xFFFu))), hn::Set(d32, 112u << 23)));
  const auto is_subnormal = hn::Lt(magnitude, hn::Set(d32, 0x38800000u));
  const auto is_infinite = hn::Gt(magnitude, hn::Set(d32, 0x477FEFFFu));
  auto rounded = hn::IfThenElse(is_subnormal, subnormal, normal);
  rounded = hn::IfThenElse(is_infinite, hn::Set(d32, 0x7C00u), rounded);
  rounded = hn::IfThenElse(hn::Gt(magnitude, hn::Set(d32, 0x7F800000u)), hn::Set(d32, uint32_t{kNanFloat16}), rounded);
  store(hn::TruncateTo(d16, hn::Or(sign, rounded)), d16, reinterpret_cast<uint16_t*>(p));
#endif
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
