#include "actnn/cpu/quantize.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "actnn/core/rounding.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/quantize.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void quantize_groups(const QuantizeSegment& segment, int64_t first_group, int64_t last_group) {
  reference::quantize_groups(segment, first_group, last_group);
}
void dequantize_groups(const DequantizeSegment& segment, int64_t first_group, int64_t last_group) {
  reference::dequantize_groups(segment, first_group, last_group);
}

#else

namespace {

/// Elements quantized per step: bounds the local buffers.
inline constexpr int64_t kChunk = 256;
static_assert(kChunk / kOctet % kPhiloxMultiple == 0);
inline constexpr int64_t kChunkOctets = kChunk / kOctet;

inline constexpr int64_t kCacheLine = 64;

/// Results of this size and more are written around the cache.
inline constexpr int64_t kStreamingBytes = int64_t{4} << 20;

/// Elements [0, count) of a group, of which whole blocks are read in place and the rest from a copy that is padded to a
/// block with the group's first element (which changes neither minimum nor maximum).
template <class Element>
struct PaddedTail {
  HWY_ALIGN Element elements[kBlock];

  void fill(const Element* tail, int64_t count, Element padding) {
    std::copy_n(tail, count, elements);
    std::fill(elements + count, elements + kBlock, padding);
  }
};

struct Range {
  float smallest;
  float largest;
  bool all_finite;
};

template <class Element>
HWY_INLINE void extend_range(const Element* block, hn::Vec<FloatTag>& low0, hn::Vec<FloatTag>& low1,
                             hn::Vec<FloatTag>& high0, hn::Vec<FloatTag>& high1, hn::Vec<FloatTag>& zero0,
                             hn::Vec<FloatTag>& zero1) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  const auto zero = hn::Zero(FloatTag());
  for (int64_t i = 0; i < kBlock; i += 2 * lanes) {
    const auto a = load_floats(block + i);
    const auto b = load_floats(block + i + lanes);
    low0 = hn::Min(low0, a);
    low1 = hn::Min(low1, b);
    high0 = hn::Max(high0, a);
    high1 = hn::Max(high1, b);
    // Stays 0 while all elements are finite; infinity and NaN make it NaN for good.
    zero0 = hn::MulAdd(a, zero, zero0);
    zero1 = hn::MulAdd(b, zero, zero1);
  }
}

template <class Element>
HWY_INLINE Range range_of(const Element* elements, int64_t count) {
  const FloatTag df;
  auto low0 = hn::Set(df, to_float(elements[0]));
  auto low1 = low0;
  auto high0 = low0;
  auto high1 = low0;
  auto zero0 = hn::Zero(df);
  auto zero1 = zero0;
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    extend_range(elements + i, low0, low1, high0, high1, zero0, zero1);
  }
  if (i < count) {
    PaddedTail<Element> tail;
    tail.fill(elements + i, count - i, elements[0]);
    extend_range(tail.elements, low0, low1, high0, high1, zero0, zero1);
  }
  const float zero = hn::GetLane(hn::SumOfLanes(df, hn::Add(zero0, zero1)));
  return {hn::GetLane(hn::MinOfLanes(df, hn::Min(low0, low1))), hn::GetLane(hn::MaxOfLanes(df, hn::Max(high0, high1))),
          !is_nan(zero)};
}

/// One step of `pack_octet` (`unpack_octet`) on every 64-bit lane.
template <int kShift>
HWY_INLINE hn::Vec<Word64Tag> join_fields(hn::Vec<Word64Tag> x, uint64_t low_fields) {
  const auto low = hn::And(x, hn::Set(Word64Tag(), low_fields));
  return hn::Or(low, hn::ShiftRight<kShift>(hn::Xor(x, low)));
}
template <int kShift>
HWY_INLINE hn::Vec<Word64Tag> part_fields(hn::Vec<Word64Tag> x, uint64_t low_fields) {
  const auto low = hn::And(x, hn::Set(Word64Tag(), low_fields));
  return hn::Or(low, hn::ShiftLeft<kShift>(hn::Xor(x, low)));
}

/// One vector of elements on the grid, in fixed point with noise added: the code is above the fraction.
template <int kBits, class Element>
HWY_INLINE hn::Vec<Word32Tag> fixed_point(const Element* elements, const EncodingGrid& grid, const uint16_t* noise) {
  const FloatTag df;
  const Word32Tag d32;
  const hn::Rebind<uint16_t, Word32Tag> d16;
  const auto scaled =
      hn::Mul(hn::Sub(load_floats(elements), hn::Set(df, grid.minimum)), hn::Set(df, grid.inverse_step));
  const auto fixed = hn::BitCast(d32, hn::Add(scaled, hn::Set(df, kIntegerInMantissa)));
  auto random = hn::PromoteTo(d32, hn::LoadU(d16, noise));
  if constexpr (fraction_bits(kBits) < 16) {
    random = hn::ShiftRight<16 - fraction_bits(kBits)>(random);
  }
  return hn::Add(fixed, random);
}

/// The codes of a fixed-point vector in byte kByte of every lane.
template <int kBits, int kByte>
HWY_INLINE hn::Vec<Word32Tag> code_in_byte(hn::Vec<Word32Tag> fixed) {
  constexpr int kShift = 8 * kByte - fraction_bits(kBits);
  const auto mask = hn::Set(Word32Tag(), highest_code(kBits) << (8 * kByte));
  if constexpr (kShift < 0) {
    fixed = hn::ShiftRight<-kShift>(fixed);
  } else {
    fixed = hn::ShiftLeft<kShift>(fixed);
  }
  return hn::And(fixed, mask);
}

/// Turns lanes of the bytes (a_i, b_i, c_i, d_i) into a_0, a_1, ..., b_0, b_1, ..., c_0, ..., d_0, ...: within 128-bit
/// blocks first, then 4 bytes at a time.
HWY_INLINE hn::Vec<Word32Tag> transpose_bytes(hn::Vec<Word32Tag> lanes) {
  const Word32Tag d32;
  const hn::Repartition<uint8_t, Word32Tag> d8;
  constexpr size_t kLanes = hn::MaxLanes(d32);
  HWY_ALIGN static constexpr uint8_t kInBlock[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  HWY_ALIGN static constexpr auto kAcross = [] {
    std::array<uint32_t, kLanes> order{};
    for (uint32_t i = 0; i < kLanes; ++i) {
      order[i] = i % (kLanes / 4) * 4 + i / (kLanes / 4);
    }
    return order;
  }();
  const auto in_block = hn::TableLookupBytes(hn::BitCast(d8, lanes), hn::LoadDup128(d8, kInBlock));
  return hn::TableLookupLanes(hn::BitCast(d32, in_block), hn::SetTableIndices(d32, kAcross.data()));
}

/// Writes the low kBits bytes of every 64-bit lane one after the other, and up to 14 bytes beyond.
template <int kBits>
HWY_INLINE void store_octets(hn::Vec<Word64Tag> octets, uint8_t* HWY_RESTRICT packed) {
  const Word64Tag d64;
  const hn::Repartition<uint8_t, Word64Tag> d8;
  if constexpr (kBits == 8) {
    hn::StoreU(hn::BitCast(d8, octets), d8, packed);
  } else if constexpr (kBits == 4 || kBits == 2 || kBits == 1) {
    using Word = std::conditional_t<kBits == 4, uint32_t, std::conditional_t<kBits == 2, uint16_t, uint8_t>>;
    const hn::Rebind<Word, Word64Tag> d;
    HWY_ALIGN Word words[hn::MaxLanes(d)];
    hn::Store(hn::TruncateTo(d, octets), d, words);
    std::memcpy(packed, words, sizeof words);
  } else {
    HWY_ALIGN static constexpr auto kCompact = [] {
      std::array<uint8_t, 16> order{};
      for (size_t i = 0; i < 16; ++i) {
        order[i] = static_cast<uint8_t>(i < 2 * kBits ? i / kBits * 8 + i % kBits : 0x80);
      }
      return order;
    }();
    HWY_ALIGN uint8_t bytes[hn::MaxLanes(d8)];
    hn::Store(hn::TableLookupBytes(hn::BitCast(d8, octets), hn::LoadDup128(d8, kCompact.data())), d8, bytes);
    for (size_t block = 0; block < hn::MaxLanes(d8) / 16; ++block) {
      std::memcpy(packed + block * 2 * kBits, bytes + block * 16, 16);  // the next block overwrites what is beyond
    }
  }
}

/// Bytes that `encode_block` may write beyond its octets.
inline constexpr int64_t kOverwrite = 16;

/// Encodes one block into 8 octets of kBits bytes.
template <int kBits, class Element>
HWY_INLINE void encode_block(const Element* block, const EncodingGrid& grid, const uint16_t* noise,
                             uint8_t* HWY_RESTRICT packed) {
  constexpr OctetSteps kSteps(kBits);
  const Word64Tag d64;
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  for (int64_t i = 0; i < kBlock; i += 4 * lanes) {
    const auto fixed = [&](int64_t vector) {
      return fixed_point<kBits>(block + i + vector * lanes, grid, noise + i + vector * lanes);
    };
    const auto codes01 = hn::Or(code_in_byte<kBits, 0>(fixed(0)), code_in_byte<kBits, 1>(fixed(1)));
    const auto codes23 = hn::Or(code_in_byte<kBits, 2>(fixed(2)), code_in_byte<kBits, 3>(fixed(3)));
    auto x = hn::BitCast(d64, transpose_bytes(hn::Or(codes01, codes23)));
    if constexpr (kBits < 8) {
      x = join_fields<kSteps.shift[0]>(x, kSteps.low[0]);
      x = join_fields<kSteps.shift[1]>(x, kSteps.low[1]);
      x = join_fields<kSteps.shift[2]>(x, kSteps.low[2]);
    }
    store_octets<kBits>(x, packed + i / kOctet * kBits);
  }
}

/// The inverse: reads up to 8 bytes beyond.
template <int kBits>
HWY_INLINE void unpack_block(const uint8_t* HWY_RESTRICT packed, uint8_t* HWY_RESTRICT codes) {
  if constexpr (kBits == 8) {
    std::memcpy(codes, packed, kBlock);
    return;
  }
  constexpr OctetSteps kSteps(kBits);
  const Word64Tag d64;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d64));
  HWY_ALIGN uint64_t octets[kBlockOctets];
  for (int64_t octet = 0; octet < kBlockOctets; ++octet) {
    std::memcpy(&octets[octet], packed + octet * kBits, 8);
  }
  for (int64_t i = 0; i < kBlockOctets; i += lanes) {
    auto x = hn::And(hn::Load(d64, octets + i), hn::Set(d64, kSteps.octet));
    x = part_fields<kSteps.shift[2]>(x, kSteps.low[2]);
    x = part_fields<kSteps.shift[1]>(x, kSteps.low[1]);
    x = part_fields<kSteps.shift[0]>(x, kSteps.low[0]);
    hn::StoreU(hn::BitCast(hn::Repartition<uint8_t, Word64Tag>(), x), hn::Repartition<uint8_t, Word64Tag>(),
               codes + i * kOctet);
  }
}

/// Chooses and stores the parameters of a group. Flattened: a call of code that is compiled for the baseline
/// instruction set mixes instruction encodings, which costs more than all the rest of the group.
template <int kBits, class Element>
HWY_FLATTEN EncodingGrid fit_group(const QuantizeSegment& segment, int64_t group) {
  const int64_t begin = group * segment.group_size;
  const int64_t count = std::min(segment.group_size, segment.count - begin);
  const Range range = range_of(static_cast<const Element*>(segment.elements) + begin, count);
  const GroupParameters parameters = choose_grid(range.smallest, range.largest, range.all_finite, kBits, segment.type);
  std::memcpy(segment.parameters + group * static_cast<int64_t>(sizeof parameters), &parameters, sizeof parameters);
  return encoding_grid(parameters, kBits, segment.type);
}

/// How far ahead of the encoder elements are asked for: encoding computes much and loads little, and the next groups'
/// ranges should not wait for memory. Beyond the end this does nothing.
inline constexpr int64_t kPrefetchDistance = 4096;

template <class Element>
HWY_INLINE void prefetch_ahead(const Element* block) {
  const auto ahead = reinterpret_cast<uintptr_t>(block) + kPrefetchDistance * sizeof(Element);
  for (uintptr_t line = 0; line < kBlock * sizeof(Element); line += kCacheLine) {
    hwy::Prefetch(reinterpret_cast<const uint8_t*>(ahead + line));
  }
}

/// Zeroes the codes of a packed block from number `count` on.
template <int kBits>
void clear_codes_beyond(uint8_t* packed, int64_t count) {
  const int64_t bits = count * kBits;
  if (bits % 8 != 0) {
    packed[bits / 8] &= static_cast<uint8_t>((1u << (bits % 8)) - 1u);
  }
  std::fill(packed + ceil_div<int64_t>(bits, 8), packed + kBlockOctets * kBits, uint8_t{0});
}

/// What all groups of a call share.
struct Encoder {
  const QuantizeSegment& segment;
  PhiloxKeys keys;
  uint8_t* codes_end;  ///< of the call's last group: nothing may be written there and beyond
};

/// Writes the codes of a group. Groups must come in order, since a block may write beyond its end, where the next one
/// begins.
template <int kBits, class Element>
void encode_group(const Encoder& encoder, int64_t group, const EncodingGrid& grid) {
  const QuantizeSegment& segment = encoder.segment;
  const int64_t begin = group * segment.group_size;
  const int64_t count = std::min(segment.group_size, segment.count - begin);
  const auto* elements = static_cast<const Element*>(segment.elements) + begin;
  uint8_t* codes = segment.codes + begin / kOctet * kBits;
  if (is_nan(grid.minimum)) {
    std::memset(codes, 0, static_cast<size_t>(code_bytes(count, kBits)));
    return;
  }

  HWY_ALIGN uint16_t noise[kChunk];
  if (!segment.stochastic) {
    std::fill_n(noise, kChunk, static_cast<uint16_t>(half_step(kBits) << (16 - fraction_bits(kBits))));
  }
  for (int64_t chunk = 0; chunk < count; chunk += kChunk) {
    const int64_t chunk_count = std::min(kChunk, count - chunk);
    if (segment.stochastic) {
      const uint64_t octet = segment.first_octet + static_cast<uint64_t>((begin + chunk) / kOctet);
      philox_blocks(encoder.keys, segment.random.offset, octet, ceil_div(chunk_count, kBlock) * kBlockOctets,
                    reinterpret_cast<uint32_t*>(noise));
    }
    for (int64_t i = 0; i < chunk_count; i += kBlock, codes += kBlockOctets * kBits) {
      const int64_t block_count = std::min(kBlock, chunk_count - i);
      if (block_count == kBlock && codes + kBlockOctets * kBits + kOverwrite <= encoder.codes_end) {
        prefetch_ahead(elements + chunk + i);
        encode_block<kBits>(elements + chunk + i, grid, noise + i, codes);
        continue;
      }
      PaddedTail<Element> tail;
      tail.fill(elements + chunk + i, block_count, elements[0]);
      uint8_t packed[kBlockOctets * kBits + kOverwrite];
      encode_block<kBits>(tail.elements, grid, noise + i, packed);
      clear_codes_beyond<kBits>(packed, block_count);
      std::memcpy(codes, packed, static_cast<size_t>(code_bytes(block_count, kBits)));
    }
  }
}

/// The range of a group is a long chain of dependent instructions; those of several groups overlap.
inline constexpr int64_t kGroupBatch = 8;

template <int kBits, class Element>
void quantize_batches(const QuantizeSegment& segment, int64_t first_group, int64_t last_group) {
  const int64_t end = std::min(last_group * segment.group_size, segment.count);
  const Encoder encoder{segment, PhiloxKeys(segment.random.seed), segment.codes + code_bytes(end, kBits)};
  EncodingGrid grids[kGroupBatch];
  for (int64_t batch = first_group; batch < last_group; batch += kGroupBatch) {
    const int64_t groups = std::min(kGroupBatch, last_group - batch);
    for (int64_t i = 0; i < groups; ++i) {
      grids[i] = fit_group<kBits, Element>(segment, batch + i);
    }
    for (int64_t i = 0; i < groups; ++i) {
      encode_group<kBits, Element>(encoder, batch + i, grids[i]);
    }
  }
}

template <class Store, class Element>
HWY_INLINE void decode_block(const uint8_t* codes, float minimum, float step, Element* block) {
  const FloatTag df;
  const hn::Rebind<int32_t, FloatTag> d32;
  const hn::Rebind<uint8_t, FloatTag> d8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto minimum_vector = hn::Set(df, minimum);
  const auto step_vector = hn::Set(df, step);
  for (int64_t i = 0; i < kBlock; i += lanes) {
    const auto code = hn::ConvertTo(df, hn::PromoteTo(d32, hn::LoadU(d8, codes + i)));
    store_floats(hn::MulAdd(code, step_vector, minimum_vector), block + i, Store());
  }
}

template <int kBits, class Store, class Element>
void dequantize_group(const DequantizeSegment& segment, int64_t group) {
  const int64_t begin = group * segment.group_size;
  const int64_t count = std::min(segment.group_size, segment.count - begin);
  auto* elements = static_cast<Element*>(segment.elements) + begin;
  const uint8_t* const group_codes = segment.codes + begin / kOctet * kBits;

  GroupParameters parameters;
  std::memcpy(&parameters, segment.parameters + group * static_cast<int64_t>(sizeof parameters), sizeof parameters);
  const float minimum = parameter_to_float(parameters.minimum, segment.type);
  const float step = parameter_to_float(parameters.step, segment.type);
  if (is_nan(minimum)) {
    Element nan;
    store_rounded(float_of(kNanFloat32), &nan);
    std::fill_n(elements, count, nan);
    return;
  }

  HWY_ALIGN uint8_t codes[kBlock];
  HWY_ALIGN Element values[kBlock];
  uint8_t packed[kChunkOctets * kBits + 8];
  for (int64_t chunk = 0; chunk < count; chunk += kChunk) {
    const int64_t chunk_count = std::min(kChunk, count - chunk);
    std::memcpy(packed, group_codes + chunk / kOctet * kBits,
                static_cast<size_t>(ceil_div(chunk_count, kOctet) * kBits));
    for (int64_t i = 0; i < chunk_count; i += kBlock) {
      unpack_block<kBits>(packed + i / kOctet * kBits, codes);
      if (i + kBlock <= chunk_count) {
        decode_block<Store>(codes, minimum, step, elements + chunk + i);
      } else {
        decode_block<StoreCached>(codes, minimum, step, values);
        std::copy_n(values, chunk_count - i, elements + chunk + i);
      }
    }
  }
}

/// Calls `body` with `bits` as a compile-time constant.
template <class Body>
HWY_INLINE void with_bits(int bits, Body&& body) {
  switch (bits) {
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    case 5:
      return body(std::integral_constant<int, 5>());
    case 6:
      return body(std::integral_constant<int, 6>());
    case 7:
      return body(std::integral_constant<int, 7>());
    default:
      return body(std::integral_constant<int, 8>());
  }
}

}  // namespace

void quantize_groups(const QuantizeSegment& segment, int64_t first_group, int64_t last_group) {
  with_element_type(segment.type, [&]<class Element>(Element /*tag*/) {
    with_bits(segment.bits,
              [&](auto bits) { quantize_batches<decltype(bits)::value, Element>(segment, first_group, last_group); });
  });
}

void dequantize_groups(const DequantizeSegment& segment, int64_t first_group, int64_t last_group) {
  const bool streams = segment.count * element_size(segment.type) >= kStreamingBytes &&
                       reinterpret_cast<uintptr_t>(segment.elements) % kCacheLine == 0 &&
                       segment.group_size % kBlock == 0;
  with_element_type(segment.type, [&]<class Element>(Element /*tag*/) {
    with_bits(segment.bits, [&](auto bits) {
      const auto dequantize = streams ? dequantize_group<decltype(bits)::value, StoreStreaming, Element>
                                      : dequantize_group<decltype(bits)::value, StoreCached, Element>;
      for (int64_t group = first_group; group < last_group; ++group) {
        dequantize(segment, group);
      }
    });
  });
  if (streams) {
    hwy::FlushStream();
  }
}

#endif

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "src/cpu/dispatch.h"

namespace actnn::cpu {

HWY_EXPORT(quantize_groups);
HWY_EXPORT(dequantize_groups);

void quantize_groups(const QuantizeSegment& segment, int64_t first_group, int64_t last_group) {
  if (use_reference()) {
    return reference::quantize_groups(segment, first_group, last_group);
  }
  HWY_DYNAMIC_DISPATCH(quantize_groups)(segment, first_group, last_group);
}

void dequantize_groups(const DequantizeSegment& segment, int64_t first_group, int64_t last_group) {
  if (use_reference()) {
    return reference::dequantize_groups(segment, first_group, last_group);
  }
  HWY_DYNAMIC_DISPATCH(dequantize_groups)(segment, first_group, last_group);
}

}  // namespace actnn::cpu
#endif
