// Vector building blocks shared by the CPU kernels. Included once per instruction set (Highway's foreach_target), hence
// the toggling include guard instead of #pragma once.
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

/// Two vectors of the widest instruction set.
inline constexpr int64_t kPhiloxMultiple = 16;

/// The keys of Philox's rounds, two a round.
struct PhiloxKeys {
  HWY_ALIGN uint64_t key[2 * kPhiloxRounds];

  explicit PhiloxKeys(uint64_t seed) {
    auto key0 = static_cast<uint32_t>(seed);
    auto key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      key[2 * round] = key0;
      key[2 * round + 1] = key1;
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
  }
};

/// Philox's words of one counter per 64-bit lane. Only the low 32 bits of a lane count: the products of a round then
/// need no shuffle, since a multiplication reads only low halves.
struct PhiloxState {
  hn::Vec<Word64Tag> x0, x1, x2, x3;
};

HWY_INLINE void philox_round(PhiloxState& s, hn::Vec<Word64Tag> key0, hn::Vec<Word64Tag> key1) {
  const Word32Tag d32;
  const auto product0 = hn::MulEven(hn::BitCast(d32, s.x0), hn::Set(d32, kPhiloxMultiplier0));
  const auto product1 = hn::MulEven(hn::BitCast(d32, s.x2), hn::Set(d32, kPhiloxMultiplier1));
  s.x0 = hn::Xor3(hn::ShiftRight<32>(product1), s.x1, key0);
  s.x1 = product1;
  s.x2 = hn::Xor3(hn::ShiftRight<32>(product0), s.x3, key1);
  s.x3 = product0;
}

/// All rounds, of two vectors at a time: a round is a chain of dependent instructions.
HWY_INLINE void philox_rounds(const PhiloxKeys& keys, PhiloxState& a, PhiloxState& b) {
  const Word64Tag d64;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const auto key0 = hn::Set(d64, keys.key[2 * round]);
    const auto key1 = hn::Set(d64, keys.key[2 * round + 1]);
    philox_round(a, key0, key1);
    philox_round(b, key0, key1);
  }
}

/// Writes the blocks in the order of lanes 0, 2, 4, ..., 1, 3, 5, ...
HWY_INLINE void store_blocks(const PhiloxState& s, uint32_t* HWY_RESTRICT words) {
  const Word64Tag d64;
  const Word32Tag d32;
  const auto join = [&](hn::Vec<Word64Tag> low, hn::Vec<Word64Tag> high) {
    return hn::BitCast(d64, hn::OddEven(hn::BitCast(d32, hn::ShiftLeft<32>(high)), hn::BitCast(d32, low)));
  };
  const auto words01 = join(s.x0, s.x1);
  const auto words23 = join(s.x2, s.x3);
  hn::StoreU(hn::BitCast(d32, hn::InterleaveLower(d64, words01, words23)), d32, words);
  hn::StoreU(hn::BitCast(d32, hn::InterleaveUpper(d64, words01, words23)), d32, words + hn::Lanes(d32));
}

/// Which block of a vector of them each lane computes: such that interleaving the two halves of the results gives the
/// blocks in their order.
HWY_INLINE hn::Vec<Word64Tag> dealt_blocks() {
  const Word64Tag d64;
  const auto lane = hn::Iota(d64, 0);
  const auto odd_lanes = hn::TestBit(lane, hn::Set(d64, 1));
  const auto half = hn::Set(d64, hn::Lanes(d64) / 2);
  return hn::Add(hn::ShiftRight<1>(lane), hn::IfThenElseZero(odd_lanes, half));
}

/// `count` Philox blocks, rounded up to a multiple of kPhiloxMultiple, for which there must be room, written in order
/// as 4 words each. `counters_from(i)` gives a vector of counters, of blocks i + dealt_blocks().
template <class CountersFrom>
HWY_INLINE void philox_blocks_at(const PhiloxKeys& keys, uint64_t offset, CountersFrom&& counters_from, int64_t count,
                                 uint32_t* HWY_RESTRICT words) {
  const Word64Tag d64;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d64));
  const auto start2 = hn::Set(d64, offset);
  const auto start3 = hn::Set(d64, offset >> 32);

  for (int64_t i = 0; i < count; i += 2 * lanes) {
    const auto counter_a = counters_from(i);
    const auto counter_b = counters_from(i + lanes);
    PhiloxState a{counter_a, hn::ShiftRight<32>(counter_a), start2, start3};
    PhiloxState b{counter_b, hn::ShiftRight<32>(counter_b), start2, start3};
    philox_rounds(keys, a, b);
    store_blocks(a, words + 4 * i);
    store_blocks(b, words + 4 * (i + lanes));
  }
}

/// Those at counters first, first + 1, ...
HWY_INLINE void philox_blocks(const PhiloxKeys& keys, uint64_t offset, uint64_t first, int64_t count,
                              uint32_t* HWY_RESTRICT words) {
  const auto dealt = dealt_blocks();
  const auto counters_from = [&](int64_t i) {
    return hn::Add(hn::Set(Word64Tag(), first + static_cast<uint64_t>(i)), dealt);
  };
  philox_blocks_at(keys, offset, counters_from, count, words);
}

/// Loads one vector of elements as floats.
template <class Tag>
HWY_INLINE hn::Vec<Tag> load_floats(Tag df, const float* p) {
  return hn::LoadU(df, p);
}

template <class Tag>
HWY_INLINE hn::Vec<Tag> load_floats(Tag df, const BFloat16* p) {
  const hn::Rebind<uint32_t, Tag> d32;
  const hn::Rebind<uint16_t, Tag> d16;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

template <class Tag>
HWY_INLINE hn::Vec<Tag> load_floats(Tag df, const Float16* p) {
#if HWY_TARGET <= HWY_AVX2
  const hn::Rebind<hwy::float16_t, Tag> d16;
  return hn::PromoteTo(df, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
#else
  const hn::Rebind<uint32_t, Tag> d32;
  const hn::Rebind<uint16_t, Tag> d16;
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

/// Loads a vector of the full length.
template <class Element>
HWY_INLINE hn::Vec<FloatTag> load_floats(const Element* p) {
  return load_floats(FloatTag(), p);
}

inline constexpr int64_t kCacheLine = 64;

/// Results of this size and more are written around the cache.
inline constexpr int64_t kStreamingBytes = int64_t{4} << 20;

/// Writes through the cache.
struct StoreCached {
  template <class V, class D, class T>
  HWY_INLINE void operator()(V v, D d, T* p) const {
    hn::StoreU(v, d, p);
  }
};

/// Writes around the cache, for results too large to stay in it: saves reading the lines that are overwritten. `p` must
/// be aligned to a vector; a later reader in another thread needs hwy::FlushStream.
struct StoreStreaming {
  template <class V, class D, class T>
  HWY_INLINE void operator()(V v, D d, T* p) const {
    if constexpr (hn::MaxLanes(d) * sizeof(T) < 16) {
      hn::StoreU(v, d, p);  // streaming writes 16 bytes at least
    } else {
      hn::Stream(v, d, p);
    }
  }
};

/// Stores one vector of floats as elements, rounded to nearest even. A NaN must be the canonical one (kNanFloat32).
template <class Tag, class Store>
HWY_INLINE void store_floats(Tag df, hn::Vec<Tag> values, float* p, Store store) {
  store(values, df, p);
}

template <class Tag, class Store>
HWY_INLINE void store_floats(Tag df, hn::Vec<Tag> values, BFloat16* p, Store store) {
  const hn::Rebind<uint32_t, Tag> d32;
  const hn::Rebind<uint16_t, Tag> d16;
  (void)df;
  const auto bits = hn::BitCast(d32, values);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7FFFu))));
  store(hn::TruncateTo(d16, rounded), d16, reinterpret_cast<uint16_t*>(p));
}

template <class Tag, class Store>
HWY_INLINE void store_floats(Tag df, hn::Vec<Tag> values, Float16* p, Store store) {
#if HWY_TARGET <= HWY_AVX2
  const hn::Rebind<hwy::float16_t, Tag> d16;
  (void)df;
  store(hn::DemoteTo(d16, values), d16, reinterpret_cast<hwy::float16_t*>(p));
#else
  const hn::Rebind<uint32_t, Tag> d32;
  const hn::Rebind<uint16_t, Tag> d16;
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

/// Stores a vector of the full length.
template <class Element, class Store = StoreCached>
HWY_INLINE void store_floats(hn::Vec<FloatTag> values, Element* p, Store store = {}) {
  store_floats(FloatTag(), values, p, store);
}

/// The canonical NaN in the place of any NaN.
template <class Tag>
HWY_INLINE hn::Vec<Tag> canonical_nan(Tag df, hn::Vec<Tag> values) {
  return hn::IfThenElse(hn::IsNaN(values), hn::BitCast(df, hn::Set(hn::Rebind<uint32_t, Tag>(), kNanFloat32)), values);
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
