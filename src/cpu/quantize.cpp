#include "actnn/cpu/quantize.h"

#include <algorithm>
#include <cstring>

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

/// The codes of one block, a byte each.
template <int kBits, class Element>
HWY_INLINE void encode_block(const Element* block, const EncodingGrid& grid, const uint16_t* noise,
                             uint8_t* HWY_RESTRICT codes) {
  const FloatTag df;
  const Word32Tag d32;
  const hn::Rebind<uint16_t, Word32Tag> d16;
  const hn::Rebind<uint8_t, Word32Tag> d8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto minimum = hn::Set(df, grid.minimum);
  const auto inverse_step = hn::Set(df, grid.inverse_step);
  const auto integer = hn::Set(df, kIntegerInMantissa);
  const auto code_mask = hn::Set(d32, highest_code(kBits));
  for (int64_t i = 0; i < kBlock; i += lanes) {
    const auto scaled = hn::Mul(hn::Sub(load_floats(block + i), minimum), inverse_step);
    const auto fixed_point = hn::BitCast(d32, hn::Add(scaled, integer));
    auto random = hn::PromoteTo(d32, hn::LoadU(d16, noise + i));
    random = hn::ShiftRight<16 - fraction_bits(kBits)>(random);
    const auto code = hn::And(hn::ShiftRight<fraction_bits(kBits)>(hn::Add(fixed_point, random)), code_mask);
    hn::StoreU(hn::TruncateTo(d8, code), d8, codes + i);
  }
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

/// Packs the codes of one block: 8 octets of kBits bytes. Writes up to 8 bytes beyond.
template <int kBits>
HWY_INLINE void pack_block(const uint8_t* HWY_RESTRICT codes, uint8_t* HWY_RESTRICT packed) {
  if constexpr (kBits == 8) {
    std::memcpy(packed, codes, kBlock);
    return;
  }
  constexpr OctetSteps kSteps(kBits);
  const Word64Tag d64;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d64));
  HWY_ALIGN uint64_t octets[kBlockOctets];
  for (int64_t i = 0; i < kBlockOctets; i += lanes) {
    auto x = hn::BitCast(d64, hn::LoadU(hn::Repartition<uint8_t, Word64Tag>(), codes + i * kOctet));
    x = join_fields<kSteps.shift[0]>(x, kSteps.low[0]);
    x = join_fields<kSteps.shift[1]>(x, kSteps.low[1]);
    x = join_fields<kSteps.shift[2]>(x, kSteps.low[2]);
    hn::Store(x, d64, octets + i);
  }
  for (int64_t octet = 0; octet < kBlockOctets; ++octet) {
    std::memcpy(packed + octet * kBits, &octets[octet], 8);  // overlaps the next octet, which is written after it
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

/// Chooses and stores the parameters of a group.
template <int kBits, class Element>
HWY_INLINE EncodingGrid fit_group(const QuantizeSegment& segment, int64_t group) {
  const int64_t begin = group * segment.group_size;
  const int64_t count = std::min(segment.group_size, segment.count - begin);
  const Range range = range_of(static_cast<const Element*>(segment.elements) + begin, count);
  const GroupParameters parameters = choose_grid(range.smallest, range.largest, range.all_finite, kBits, segment.type);
  std::memcpy(segment.parameters + group * static_cast<int64_t>(sizeof parameters), &parameters, sizeof parameters);
  return encoding_grid(parameters, kBits, segment.type);
}

/// Writes the codes of a group.
template <int kBits, class Element>
void encode_group(const QuantizeSegment& segment, int64_t group, const EncodingGrid& grid) {
  const int64_t begin = group * segment.group_size;
  const int64_t count = std::min(segment.group_size, segment.count - begin);
  const auto* elements = static_cast<const Element*>(segment.elements) + begin;
  uint8_t* const group_codes = segment.codes + begin / kOctet * kBits;
  if (is_nan(grid.minimum)) {
    std::memset(group_codes, 0, static_cast<size_t>(code_bytes(count, kBits)));
    return;
  }

  HWY_ALIGN uint16_t noise[kChunk];
  HWY_ALIGN uint8_t codes[kChunk];
  uint8_t packed[kChunkOctets * kBits + 8];
  if (!segment.stochastic) {
    std::fill_n(noise, kChunk, static_cast<uint16_t>(half_step(kBits) << (16 - fraction_bits(kBits))));
  }
  for (int64_t chunk = 0; chunk < count; chunk += kChunk) {
    const int64_t chunk_count = std::min(kChunk, count - chunk);
    const int64_t blocks = ceil_div(chunk_count, kBlock);
    if (segment.stochastic) {
      const uint64_t octet = segment.first_octet + static_cast<uint64_t>((begin + chunk) / kOctet);
      philox_blocks(segment.random, octet, blocks * kBlockOctets, reinterpret_cast<uint32_t*>(noise));
    }
    for (int64_t i = 0; i < blocks * kBlock; i += kBlock) {
      if (i + kBlock <= chunk_count) {
        encode_block<kBits>(elements + chunk + i, grid, noise + i, codes + i);
      } else {
        PaddedTail<Element> tail;
        tail.fill(elements + chunk + i, chunk_count - i, elements[0]);
        encode_block<kBits>(tail.elements, grid, noise + i, codes + i);
        std::fill(codes + chunk_count, codes + i + kBlock, uint8_t{0});
      }
    }
    for (int64_t i = 0; i < blocks * kBlock; i += kBlock) {
      pack_block<kBits>(codes + i, packed + i / kOctet * kBits);
    }
    std::memcpy(group_codes + chunk / kOctet * kBits, packed, static_cast<size_t>(code_bytes(chunk_count, kBits)));
  }
}

/// Asks for the elements of a group, while another one is being encoded: encoding computes much and loads little.
HWY_INLINE void prefetch_group(const QuantizeSegment& segment, int64_t group) {
  const auto* bytes = static_cast<const uint8_t*>(segment.elements);
  const int64_t begin = group * segment.group_size * element_size(segment.type);
  const int64_t end =
      std::min(begin + segment.group_size * element_size(segment.type), segment.count * element_size(segment.type));
  for (int64_t i = begin; i < end; i += kCacheLine) {
    hwy::Prefetch(bytes + i);
  }
}

/// The range of a group is a long chain of dependent instructions; those of several groups overlap.
inline constexpr int64_t kGroupBatch = 8;

template <int kBits, class Element>
void quantize_batches(const QuantizeSegment& segment, int64_t first_group, int64_t last_group) {
  EncodingGrid grids[kGroupBatch];
  for (int64_t batch = first_group; batch < last_group; batch += kGroupBatch) {
    const int64_t groups = std::min(kGroupBatch, last_group - batch);
    for (int64_t i = 0; i < groups; ++i) {
      grids[i] = fit_group<kBits, Element>(segment, batch + i);
    }
    for (int64_t i = 0; i < groups; ++i) {
      prefetch_group(segment, batch + i + kGroupBatch);
      encode_group<kBits, Element>(segment, batch + i, grids[i]);
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
