// Octets (core/bit_packing.h) in vectors: one in every 64-bit lane. Included once per instruction set, as vector-inl.h.
#if defined(ACTNN_CPU_OCTET_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_OCTET_INL_H_
#undef ACTNN_CPU_OCTET_INL_H_
#else
#define ACTNN_CPU_OCTET_INL_H_
#endif

#include <array>
#include <cstring>
#include <type_traits>

#include "actnn/core/bit_packing.h"
#include "src/cpu/vector-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

using ByteTag = hn::ScalableTag<uint8_t>;

inline constexpr size_t kVectorBytes = hn::MaxLanes(ByteTag());
inline constexpr size_t kVectorWords = kVectorBytes / 4;

/// Bytes that `store_octets` may write, and `load_octets` read, beyond the octets of a block.
template <int kBits>
inline constexpr int64_t kOverwrite = 8 % kBits == 0 ? 0 : 16;
template <int kBits>
inline constexpr int64_t kOverread = 8 % kBits == 0 ? 0 : kBlock;

/// The transpose of the 4 x 4 bytes of each 128-bit block.
HWY_INLINE hn::Vec<Word32Tag> transpose_in_blocks(hn::Vec<Word32Tag> lanes) {
  const ByteTag d8;
  HWY_ALIGN static constexpr uint8_t kOrder[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  return hn::BitCast(Word32Tag(), hn::TableLookupBytes(hn::BitCast(d8, lanes), hn::LoadDup128(d8, kOrder)));
}

/// Of words a_k, b_k, c_k, d_k in 128-bit block k, makes a_0, a_1, ..., b_0, b_1, ..., c_0, ..., d_0, ... .
HWY_INLINE hn::Vec<Word32Tag> gather_words(hn::Vec<Word32Tag> lanes) {
  HWY_ALIGN static constexpr auto kOrder = [] {
    std::array<uint32_t, kVectorWords> order{};
    for (uint32_t i = 0; i < kVectorWords; ++i) {
      order[i] = i % (kVectorWords / 4) * 4 + i / (kVectorWords / 4);
    }
    return order;
  }();
  return hn::TableLookupLanes(lanes, hn::SetTableIndices(Word32Tag(), kOrder.data()));
}

/// The inverse of `gather_words`.
HWY_INLINE hn::Vec<Word32Tag> deal_words(hn::Vec<Word32Tag> lanes) {
  HWY_ALIGN static constexpr auto kOrder = [] {
    std::array<uint32_t, kVectorWords> order{};
    for (uint32_t i = 0; i < kVectorWords; ++i) {
      order[i] = i % 4 * (kVectorWords / 4) + i / 4;
    }
    return order;
  }();
  return hn::TableLookupLanes(lanes, hn::SetTableIndices(Word32Tag(), kOrder.data()));
}

/// An integer with a byte for each of the codes that one packed byte holds (kBits 1, 2 or 4).
template <int kBits>
using UnpackedByte = std::conditional_t<kBits == 4, uint16_t, std::conditional_t<kBits == 2, uint32_t, uint64_t>>;

/// Joins pairs of fields that are kShift bits apart. Bits above the joined ones keep what was there.
template <int kShift>
HWY_INLINE hn::Vec<Word64Tag> join_fields(hn::Vec<Word64Tag> x) {
  return hn::Or(x, hn::ShiftRight<kShift>(x));
}

/// Packs the codes of every 64-bit lane, bytes below 2^kBits, as `pack_octet` does, and writes kBits bytes of every
/// lane one after the other.
template <int kBits>
HWY_INLINE void store_octets(hn::Vec<Word64Tag> codes, uint8_t* HWY_RESTRICT packed) {
  constexpr OctetSteps kSteps(kBits);
  const ByteTag d8;
  if constexpr (kBits == 8) {
    hn::StoreU(hn::BitCast(d8, codes), d8, packed);
  } else if constexpr (8 % kBits == 0) {
    // Joined without masks: what remains above a field never reaches the byte that is kept.
    const hn::Repartition<UnpackedByte<kBits>, Word64Tag> fields;
    const hn::Rebind<uint8_t, decltype(fields)> bytes;
    auto joined = join_fields<kSteps.shift[0]>(codes);
    if constexpr (kBits <= 2) {
      joined = join_fields<kSteps.shift[1]>(joined);
    }
    if constexpr (kBits == 1) {
      joined = join_fields<kSteps.shift[2]>(joined);
    }
    if constexpr (kBits == 2) {
      // In two steps: Highway 1.0.3 has a wrong one from 32 bits to 8 for HWY_AVX3_DL.
      const hn::Rebind<uint16_t, decltype(fields)> halves;
      hn::StoreU(hn::TruncateTo(bytes, hn::TruncateTo(halves, hn::BitCast(fields, joined))), bytes, packed);
    } else {
      hn::StoreU(hn::TruncateTo(bytes, hn::BitCast(fields, joined)), bytes, packed);
    }
  } else {
    const auto join = [&](auto step) {
      constexpr int kStep = decltype(step)::value;
      constexpr int kWidth = kBits << kStep;  // of the fields
      const auto low = hn::And(codes, hn::Set(Word64Tag(), kSteps.low[kStep]));
      const auto moved = hn::ShiftRight<kSteps.shift[kStep]>(codes);
      codes = hn::OrAnd(low, moved, hn::Set(Word64Tag(), kSteps.low[kStep] << kWidth));
    };
    join(std::integral_constant<int, 0>());
    join(std::integral_constant<int, 1>());
    join(std::integral_constant<int, 2>());
    HWY_ALIGN static constexpr auto kCompact = [] {
      std::array<uint8_t, 16> order{};
      for (size_t i = 0; i < 16; ++i) {
        order[i] = static_cast<uint8_t>(i < 2 * kBits ? i / kBits * 8 + i % kBits : 0x80);
      }
      return order;
    }();
    HWY_ALIGN uint8_t bytes[kVectorBytes];
    hn::Store(hn::TableLookupBytes(hn::BitCast(d8, codes), hn::LoadDup128(d8, kCompact.data())), d8, bytes);
    for (size_t block = 0; block < kVectorBytes / 16; ++block) {
      std::memcpy(packed + block * 2 * kBits, bytes + block * 16, 16);  // the next block overwrites what is beyond
    }
  }
}

/// Each packed byte in the lowest bits of an `UnpackedByte`.
template <int kBits>
HWY_INLINE hn::Vec<Word64Tag> load_fields(const uint8_t* HWY_RESTRICT packed) {
  const hn::Repartition<UnpackedByte<kBits>, Word64Tag> fields;
  const hn::Rebind<uint8_t, decltype(fields)> d8;
  if constexpr (kBits == 1) {
    // Not every instruction set makes 64 bits of a byte in one step.
    const hn::Rebind<uint32_t, decltype(fields)> words;
    return hn::PromoteTo(fields, hn::PromoteTo(words, hn::LoadU(d8, packed)));
  } else {
    return hn::BitCast(Word64Tag(), hn::PromoteTo(fields, hn::LoadU(d8, packed)));
  }
}

/// Step kStep of `unpack_octet` for up to 4 bits, where nothing is above the fields.
template <int kBits, int kStep>
HWY_INLINE hn::Vec<Word64Tag> part_fields(hn::Vec<Word64Tag> x) {
  constexpr OctetSteps kSteps(kBits);
  constexpr uint64_t kFields = kSteps.low[kStep] | kSteps.low[kStep] << (8 << kStep);
  return hn::And(hn::Or(x, hn::ShiftLeft<kSteps.shift[kStep]>(x)), hn::Set(Word64Tag(), kFields));
}

/// The inverse of `store_octets`, as `unpack_octet` does.
template <int kBits>
HWY_INLINE hn::Vec<Word64Tag> load_octets(const uint8_t* HWY_RESTRICT packed) {
  const Word64Tag d64;
  const Word32Tag d32;
  const ByteTag d8;
  if constexpr (kBits == 8) {
    return hn::BitCast(d64, hn::LoadU(d8, packed));
  } else if constexpr (8 % kBits == 0) {
    auto codes = load_fields<kBits>(packed);
    if constexpr (kBits == 1) {
      codes = part_fields<kBits, 2>(codes);
    }
    if constexpr (kBits <= 2) {
      codes = part_fields<kBits, 1>(codes);
    }
    return part_fields<kBits, 0>(codes);
  } else {
    // First the words into their 128-bit blocks, then the bytes of the two octets there into place.
    HWY_ALIGN static constexpr auto kWords = [] {
      std::array<uint32_t, kVectorWords> order{};
      for (uint32_t i = 0; i < kVectorWords; ++i) {
        const uint32_t word = i / 4 * 2 * kBits / 4 + i % 4;
        order[i] = word < kVectorWords ? word : 0;
      }
      return order;
    }();
    HWY_ALIGN static constexpr auto kBytes = [] {
      std::array<uint8_t, kVectorBytes> order{};
      for (size_t i = 0; i < kVectorBytes; ++i) {
        const size_t before = i / 16 * 2 * kBits % 4;  // bytes of the block's first word that are the previous block's
        order[i] = static_cast<uint8_t>(i % 8 < kBits ? before + i % 16 / 8 * kBits + i % 8 : 0x80);
      }
      return order;
    }();
    const auto words =
        hn::TableLookupLanes(hn::BitCast(d32, hn::LoadU(d8, packed)), hn::SetTableIndices(d32, kWords.data()));
    constexpr OctetSteps kSteps(kBits);
    auto codes = hn::BitCast(d64, hn::TableLookupBytes(hn::BitCast(d8, words), hn::Load(d8, kBytes.data())));
    const auto part = [&](auto step) {
      constexpr int kStep = decltype(step)::value;
      constexpr int kApart = 8 << kStep;  // where the fields end up
      const auto low = hn::And(codes, hn::Set(d64, kSteps.low[kStep]));
      const auto moved = hn::ShiftLeft<kSteps.shift[kStep]>(codes);
      codes = hn::OrAnd(low, moved, hn::Set(d64, kSteps.low[kStep] << kApart));
    };
    part(std::integral_constant<int, 2>());
    part(std::integral_constant<int, 1>());
    part(std::integral_constant<int, 0>());
    return codes;
  }
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
