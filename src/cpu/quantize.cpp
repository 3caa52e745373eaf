#include "actnn/cpu/quantize.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "actnn/core/rounding.h"
#include "src/cpu/with_bits.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/quantize.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/grids-inl.h"
#include "src/cpu/group_range-inl.h"
#include "src/cpu/octet-inl.h"

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

template <class Element>
inline constexpr ElementType kTypeOf = ElementType::kFloat32;
template <>
inline constexpr ElementType kTypeOf<Float16> = ElementType::kFloat16;
template <>
inline constexpr ElementType kTypeOf<BFloat16> = ElementType::kBFloat16;

/// The noise of elements, a byte each, drawn ahead.
class NoiseBytes {
 public:
  /// Of a segment, for blocks in order.
  NoiseBytes(const RandomState& random, uint64_t first_octet, int64_t count)
      : is_random_(true), keys_(random.seed), offset_(random.offset), first_block_(first_octet / 2), count_(count) {}
  /// The same for all elements.
  explicit NoiseBytes(uint32_t noise) : is_random_(false), keys_(0) {
    std::fill_n(bytes_, kAhead, static_cast<uint8_t>(noise));
  }

  /// Makes sure of the noise of the block that begins at `element`, a multiple of 32.
  HWY_INLINE void reach(int64_t element) {
    if (element + kBlock > end_) {
      draw(element);
    }
  }
  HWY_INLINE const uint8_t* at(int64_t element) const { return bytes_ + (element - begin_); }
  /// Of `blocks` blocks from `element` on, those whose noise there is.
  HWY_INLINE int64_t drawn_blocks(int64_t element, int64_t blocks) const {
    return std::min(blocks, (end_ - element) / kBlock);
  }

 private:
  static constexpr int64_t kBlockBytes = sizeof(PhiloxBlock);
  static constexpr int64_t kAhead = 1024;
  static_assert(kAhead % (kPhiloxMultiple * kBlockBytes) == 0 && kGroupSizeMultiple % kBlockBytes == 0);

  /// Not inlined: the loops over blocks keep their constants in registers.
  HWY_NOINLINE void draw(int64_t element) {
    begin_ = element;
    end_ = element + kAhead;
    if (is_random_) {
      philox_blocks(keys_, offset_, first_block_ + static_cast<uint64_t>(element / kBlockBytes),
                    ceil_div(std::min(kAhead, count_ - element), kBlockBytes), reinterpret_cast<uint32_t*>(bytes_));
    }
  }

  HWY_ALIGN uint8_t bytes_[kAhead];
  bool is_random_;
  PhiloxKeys keys_;
  uint64_t offset_ = 0;
  uint64_t first_block_ = 0;
  int64_t count_ = 0;
  int64_t begin_ = 0;
  int64_t end_ = 0;
};

/// `position_on_grid` of one vector of elements.
template <class Element>
HWY_INLINE hn::Vec<Word32Tag> positions(const Element* elements, const EncodingGrid& grid) {
  const FloatTag df;
  const auto scaled =
      hn::Mul(hn::Sub(load_floats(elements), hn::Set(df, grid.minimum)), hn::Set(df, grid.inverse_step));
  return hn::BitCast(Word32Tag(), hn::Add(scaled, hn::Set(df, kIntegerInMantissa)));
}

/// Encodes one block into 8 octets of kBits bytes, and writes up to kOverwrite<kBits> bytes beyond.
template <int kBits, class Element>
HWY_INLINE void encode_block(const Element* block, const EncodingGrid& grid, const uint8_t* noise,
                             uint8_t* HWY_RESTRICT packed) {
  const Word32Tag d32;
  const Word64Tag d64;
  const hn::Repartition<uint16_t, Word32Tag> d16;
  const ByteTag d8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d32));
  for (int64_t i = 0; i < kBlock; i += 4 * lanes) {
    // Positions have 16 bits, the upper 8 of which are the code; so have their sums with the noise. Each lane gets an
    // element of each of four vectors a, b, c, d, in two words: a below c, and b below d.
    const auto position = [&](int64_t vector) { return positions(block + i + vector * lanes, grid); };
    const auto in_halves = [&](hn::Vec<Word32Tag> low, hn::Vec<Word32Tag> high) {
      return hn::OddEven(hn::BitCast(d16, hn::ShiftLeft<16>(high)), hn::BitCast(d16, low));
    };
    const auto noise_words = hn::BitCast(d32, hn::LoadU(d8, noise + i));
    const auto noise_abcd = hn::BitCast(d16, transpose_in_blocks(deal_words(noise_words)));
    const auto ac = hn::Add(in_halves(position(0), position(2)), hn::And(noise_abcd, hn::Set(d16, 0x00FF)));
    const auto bd = hn::Add(in_halves(position(1), position(3)), hn::ShiftRight<8>(noise_abcd));
    const auto codes_abcd = hn::OddEven(hn::BitCast(d8, bd), hn::BitCast(d8, hn::ShiftRight<8>(ac)));
    const auto codes = gather_words(transpose_in_blocks(hn::BitCast(d32, codes_abcd)));
    store_octets<kBits>(hn::BitCast(d64, codes), packed + i / kOctet * kBits);
  }
}

/// The range of a group is a long chain of dependent instructions; those of several groups overlap, and their grids are
/// chosen in the lanes of a vector.
inline constexpr int64_t kGroupBatch = 4;

/// Chooses the parameters of groups, and what their elements are encoded with: minimum NaN where a group is left to the
/// reference, because it cannot be represented or has elements that are not finite.
template <int kBits, ElementType kType>
HWY_INLINE void choose_batch(const GroupRange (&ranges)[kGroupBatch], GroupParameters (&parameters)[kGroupBatch],
                             EncodingGrid (&encoding)[kGroupBatch]) {
  if constexpr (has_float16_parameters(kType)) {
    for (int64_t i = 0; i < kGroupBatch; ++i) {
      parameters[i] = ranges[i].all_finite ? choose_grid(ranges[i], kBits, kType) : unrepresentable_group(kType);
      encoding[i] = encoding_grid(parameters[i], kType);
    }
  } else {
    const hn::CappedTag<float, kGroupBatch> df;
    const hn::Rebind<uint32_t, decltype(df)> d32;
    const auto unrepresentable = std::bit_cast<uint32_t>(unrepresentable_group(kType));
    HWY_ALIGN float smallest[kGroupBatch];
    HWY_ALIGN float largest[kGroupBatch];
    for (int64_t i = 0; i < kGroupBatch; ++i) {
      smallest[i] = ranges[i].all_finite ? ranges[i].smallest : float_of(kNanFloat32);
      largest[i] = ranges[i].largest;
    }
    HWY_ALIGN uint32_t words[kGroupBatch];
    HWY_ALIGN float minima[kGroupBatch];
    HWY_ALIGN float inverse_steps[kGroupBatch];
    for (size_t i = 0; i < kGroupBatch; i += hn::Lanes(df)) {
      const Grids grids = choose_grids(df, hn::Load(df, smallest + i), hn::Load(df, largest + i), kBits, kType);
      const auto exists = hn::RebindMask(d32, grids.representable);
      hn::Store(hn::IfThenElse(exists, grids.parameters, hn::Set(d32, unrepresentable)), d32, words + i);
      hn::Store(hn::IfThenElse(grids.representable, grids.minimum, hn::NaN(df)), df, minima + i);
      hn::Store(grids.above, df, inverse_steps + i);
    }
    std::memcpy(parameters, words, sizeof words);
    for (int64_t i = 0; i < kGroupBatch; ++i) {
      encoding[i] = {minima[i], inverse_steps[i]};
    }
  }
}

/// Chooses and stores the parameters of `count` groups. Flattened: a call of code that is compiled for the baseline
/// instruction set mixes instruction encodings, which costs more than all the rest of a group.
template <int kBits, class Element>
HWY_FLATTEN void fit_groups(const QuantizeSegment& segment, int64_t first_group, int64_t count,
                            EncodingGrid (&encoding)[kGroupBatch]) {
  GroupRange ranges[kGroupBatch];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = (first_group + i) * segment.group_size;
    ranges[i] = range_of(static_cast<const Element*>(segment.elements) + begin,
                         std::min(segment.group_size, segment.count - begin));
  }
  GroupParameters parameters[kGroupBatch];
  choose_batch<kBits, kTypeOf<Element>>(ranges, parameters, encoding);
  std::memcpy(segment.parameters + first_group * static_cast<int64_t>(sizeof(GroupParameters)), parameters,
              static_cast<size_t>(count) * sizeof(GroupParameters));
}

/// How far ahead of the encoder elements are asked for: encoding computes much and loads little, and the next groups'
/// ranges should not wait for memory. Two batches of groups of the default size: twice as far is slower by a fifth.
/// Beyond the end this does nothing.
inline constexpr int64_t kPrefetchDistance = 2 * kGroupBatch * kDefaultGroupSize;

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

/// Where the codes of a call's last group end: blocks are written in place while what they may overwrite is before it.
inline const uint8_t* end_of_codes(const QuantizeSegment& segment, int64_t last_group) {
  return segment.codes + code_bytes(std::min(last_group * segment.group_size, segment.count), segment.bits);
}

/// Of `blocks` blocks of codes from `codes` on, those that are followed by so many bytes before `end`.
inline int64_t blocks_with_room(int64_t blocks, int bits, const uint8_t* codes, int64_t bytes, const uint8_t* end) {
  const int64_t block_bytes = kBlockOctets * bits;
  return std::clamp<int64_t>((end - codes - bytes) / block_bytes, 0, blocks);
}

/// Encodes a block that is not whole, or not followed by other codes. Not inlined: without calls, the loop over all
/// other blocks keeps its constants in registers.
template <int kBits, class Element>
HWY_NOINLINE void encode_last_block(const Element* elements, int64_t count, Element padding, const EncodingGrid& grid,
                                    const uint8_t* noise, uint8_t* codes) {
  PaddedTail<Element> tail;
  tail.fill(elements, count, padding);
  uint8_t packed[kBlockOctets * kBits + kOverwrite<kBits>];
  encode_block<kBits>(tail.elements, grid, noise, packed);
  clear_codes_beyond<kBits>(packed, count);
  std::memcpy(codes, packed, static_cast<size_t>(code_bytes(count, kBits)));
}

/// Writes the codes of a group. Groups must come in order, since a block may write beyond its end, where the next one
/// begins.
template <int kBits, class Element>
HWY_INLINE void encode_group(const QuantizeSegment& segment, int64_t group, EncodingGrid grid, NoiseBytes& noise,
                             const uint8_t* codes_end) {
  if (is_nan(grid.minimum)) {
    return reference::quantize_groups(segment, group, group + 1);
  }
  const int64_t begin = group * segment.group_size;
  const int64_t end = std::min(begin + segment.group_size, segment.count);
  const auto* elements = static_cast<const Element*>(segment.elements);
  uint8_t* codes = segment.codes + begin / kOctet * kBits;
  const int64_t in_place =
      begin + kBlock * blocks_with_room((end - begin) / kBlock, kBits, codes, kOverwrite<kBits>, codes_end);
  int64_t i = begin;
  while (i < in_place) {
    noise.reach(i);
    const uint8_t* bytes = noise.at(i);
    for (int64_t left = noise.drawn_blocks(i, (in_place - i) / kBlock); left > 0; --left) {
      prefetch_ahead(elements + i);
      encode_block<kBits>(elements + i, grid, bytes, codes);
      i += kBlock;
      bytes += kBlock;
      codes += kBlockOctets * kBits;
    }
  }
  for (; i < end; i += kBlock, codes += kBlockOctets * kBits) {
    noise.reach(i);
    encode_last_block<kBits>(elements + i, std::min(kBlock, end - i), elements[begin], grid, noise.at(i), codes);
  }
}

template <int kBits, class Element>
void encode_groups(const QuantizeSegment& segment, int64_t first_group, int64_t last_group) {
  NoiseBytes noise = segment.rounding == Rounding::kNearest
                         ? NoiseBytes(kHalfStep)
                         : NoiseBytes(segment.random, segment.first_octet, segment.count);
  const uint8_t* codes_end = end_of_codes(segment, last_group);
  EncodingGrid grids[kGroupBatch];
  for (int64_t batch = first_group; batch < last_group; batch += kGroupBatch) {
    const int64_t groups = std::min(kGroupBatch, last_group - batch);
    fit_groups<kBits, Element>(segment, batch, groups, grids);
    for (int64_t i = 0; i < groups; ++i) {
      encode_group<kBits, Element>(segment, batch + i, grids[i], noise, codes_end);
    }
  }
}

template <int kBits, class Store, class Element>
HWY_INLINE void decode_block(const uint8_t* HWY_RESTRICT packed, const DecodingGrid& grid, const uint8_t* noise,
                             Element* block) {
  const FloatTag df;
  const Word32Tag d32;
  const hn::Rebind<int32_t, FloatTag> di32;
  const hn::Repartition<uint16_t, Word32Tag> d16;
  const ByteTag d8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto start = hn::Set(df, grid.start);
  const auto scale = hn::Set(df, grid.scale);
  for (int64_t i = 0; i < kBlock; i += 4 * lanes) {
    // Each 128-bit block gets 4 elements of each of four vectors. Interleaving within blocks then gives these vectors:
    // first of noise and codes, to n of `DecodingGrid` in 16 bits, and then of those and zeros.
    const auto codes = load_octets<kBits>(packed + i / kOctet * kBits);
    const auto noise_words = hn::BitCast(d32, hn::LoadU(d8, noise + i));
    const auto high = hn::BitCast(d8, deal_words(hn::BitCast(d32, codes)));
    const auto low = hn::Not(hn::BitCast(d8, deal_words(noise_words)));
    const auto store = [&](hn::Vec<decltype(d16)> n, int64_t vector) {
      const auto value = hn::MulAdd(hn::ConvertTo(df, hn::BitCast(di32, n)), scale, start);
      store_floats(value, block + i + vector * lanes, Store());
    };
    const auto first = hn::BitCast(d16, hn::InterleaveLower(d8, low, high));
    const auto second = hn::BitCast(d16, hn::InterleaveUpper(d8, low, high));
    const auto zero = hn::Zero(d16);
    store(hn::InterleaveLower(d16, first, zero), 0);
    store(hn::InterleaveUpper(d16, first, zero), 1);
    store(hn::InterleaveLower(d16, second, zero), 2);
    store(hn::InterleaveUpper(d16, second, zero), 3);
  }
}

/// Decodes a block that is not whole, or not followed by other codes; not inlined, as `encode_last_block`.
template <int kBits, class Element>
HWY_NOINLINE void decode_last_block(const uint8_t* codes, const DecodingGrid& grid, const uint8_t* noise, int64_t count,
                                    Element* elements) {
  uint8_t packed[kBlockOctets * kBits + kOverread<kBits>] = {};
  std::memcpy(packed, codes, static_cast<size_t>(code_bytes(count, kBits)));
  HWY_ALIGN Element values[kBlock];
  decode_block<kBits, StoreCached>(packed, grid, noise, values);
  std::copy_n(values, count, elements);
}

template <int kBits, class Store, class Element>
HWY_INLINE void decode_group(const DequantizeSegment& segment, int64_t group, NoiseBytes& noise,
                             const uint8_t* codes_end) {
  GroupParameters parameters;
  std::memcpy(&parameters, segment.parameters + group * static_cast<int64_t>(sizeof parameters), sizeof parameters);
  const DecodingGrid grid(parameters, kTypeOf<Element>, segment.header.dithered());
  if (is_nan(grid.start) || (parameters.step & kHasNanCode) != 0) {
    return reference::dequantize_groups(segment, group, group + 1);
  }
  const int64_t begin = group * segment.group_size;
  const int64_t end = std::min(begin + segment.group_size, segment.count);
  auto* elements = static_cast<Element*>(segment.elements);
  const uint8_t* codes = segment.codes + begin / kOctet * kBits;
  const int64_t in_place =
      begin + kBlock * blocks_with_room((end - begin) / kBlock, kBits, codes, kOverread<kBits>, codes_end);
  int64_t i = begin;
  while (i < in_place) {
    noise.reach(i);
    const uint8_t* bytes = noise.at(i);
    for (int64_t left = noise.drawn_blocks(i, (in_place - i) / kBlock); left > 0; --left) {
      decode_block<kBits, Store>(codes, grid, bytes, elements + i);
      i += kBlock;
      bytes += kBlock;
      codes += kBlockOctets * kBits;
    }
  }
  for (; i < end; i += kBlock, codes += kBlockOctets * kBits) {
    noise.reach(i);
    decode_last_block<kBits>(codes, grid, noise.at(i), std::min(kBlock, end - i), elements + i);
  }
}

template <int kBits, class Store, class Element>
void decode_groups(const DequantizeSegment& segment, int64_t first_group, int64_t last_group) {
  const uint8_t* codes_end = segment.codes + code_bytes(segment.count, kBits);
  NoiseBytes noise = segment.header.dithered() ? NoiseBytes(segment.header.random(), segment.first_octet, segment.count)
                                               : NoiseBytes(kNoises - 1);
  for (int64_t group = first_group; group < last_group; ++group) {
    decode_group<kBits, Store, Element>(segment, group, noise, codes_end);
  }
}

}  // namespace

void quantize_groups(const QuantizeSegment& segment, int64_t first_group, int64_t last_group) {
  with_element_type(segment.type, [&]<class Element>(Element /*tag*/) {
    with_bits(segment.bits,
              [&](auto bits) { encode_groups<decltype(bits)::value, Element>(segment, first_group, last_group); });
  });
}

void dequantize_groups(const DequantizeSegment& segment, int64_t first_group, int64_t last_group) {
  const bool streams = segment.count * element_size(segment.type) >= kStreamingBytes &&
                       reinterpret_cast<uintptr_t>(segment.elements) % kCacheLine == 0 &&
                       segment.group_size % kBlock == 0;
  with_element_type(segment.type, [&]<class Element>(Element /*tag*/) {
    with_bits(segment.bits, [&](auto bits) {
      const auto decode = streams ? decode_groups<decltype(bits)::value, StoreStreaming, Element>
                                  : decode_groups<decltype(bits)::value, StoreCached, Element>;
      decode(segment, first_group, last_group);
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
