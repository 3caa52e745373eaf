#include "actnn/cpu/mask.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/mask.cpp"
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void relu(const void* input, ElementType type, int64_t count, void* output, uint8_t* mask, int64_t first_octet,
          int64_t last_octet) {
  reference::relu(input, type, count, output, mask, first_octet, last_octet);
}
void apply_mask(const void* input, ElementType type, int64_t count, const uint8_t* mask, void* output,
                int64_t first_octet, int64_t last_octet) {
  reference::apply_mask(input, type, count, mask, output, first_octet, last_octet);
}

#else

namespace {

/// The two functions only compare and copy, so they work on an element's bits: signed words, which order positive
/// floats as floats do.
template <class Word>
constexpr Word infinity_bits(ElementType type) {
  return static_cast<Word>(type == ElementType::kFloat32   ? 0x7F800000
                           : type == ElementType::kFloat16 ? 0x7C00
                                                           : 0x7F80);
}

/// Writes one vector's mask into the bytes of a block; `lane` is the block's element where the vector begins.
template <class Tag>
HWY_INLINE void store_mask(Tag d, hn::Mask<Tag> mask, int64_t lane, uint8_t* block_mask) {
  if constexpr (hn::MaxLanes(d) >= kOctet) {
    hn::StoreMaskBits(d, mask, block_mask + lane / kOctet);
  } else {
    uint8_t bits[8] = {};
    hn::StoreMaskBits(d, mask, bits);
    uint8_t& byte = block_mask[lane / kOctet];
    byte = static_cast<uint8_t>((lane % kOctet == 0 ? 0 : byte) | (bits[0] << (lane % kOctet)));
  }
}

template <class Tag>
HWY_INLINE hn::Mask<Tag> load_mask(Tag d, int64_t lane, const uint8_t* block_mask) {
  if constexpr (hn::MaxLanes(d) >= kOctet) {
    return hn::LoadMaskBits(d, block_mask + lane / kOctet);
  } else {
    const uint8_t bits[8] = {static_cast<uint8_t>(block_mask[lane / kOctet] >> (lane % kOctet))};
    return hn::LoadMaskBits(d, bits);
  }
}

template <class Word>
void relu_blocks(const Word* input, Word infinity, Word* output, uint8_t* mask, int64_t blocks) {
  const hn::ScalableTag<Word> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto zero = hn::Zero(d);
  const auto magnitude_mask = hn::Set(d, static_cast<Word>(~(Word{1} << (sizeof(Word) * 8 - 1))));
  const auto infinity_vector = hn::Set(d, infinity);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t lane = 0; lane < kBlock; lane += lanes) {
      const auto x = hn::LoadU(d, input + block * kBlock + lane);
      const auto magnitude = hn::And(x, magnitude_mask);
      const auto passes = hn::Or(hn::Gt(x, zero), hn::Gt(magnitude, infinity_vector));
      const auto stays = hn::Or(passes, hn::Eq(magnitude, zero));
      hn::StoreU(hn::IfThenElseZero(stays, x), d, output + block * kBlock + lane);
      store_mask(d, passes, lane, mask + block * kBlockOctets);
    }
  }
}

template <class Word>
void apply_mask_blocks(const Word* input, const uint8_t* mask, Word* output, int64_t blocks) {
  const hn::ScalableTag<Word> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t lane = 0; lane < kBlock; lane += lanes) {
      const auto x = hn::LoadU(d, input + block * kBlock + lane);
      hn::StoreU(hn::IfThenElseZero(load_mask(d, lane, mask + block * kBlockOctets), x), d,
                 output + block * kBlock + lane);
    }
  }
}

/// Whole blocks among octets [first, last) of `count` elements.
int64_t whole_blocks(int64_t count, int64_t first, int64_t last) {
  return std::max<int64_t>(0, (std::min(last, count / kOctet) - first) / kBlockOctets);
}

template <class Body>
HWY_INLINE void with_word(ElementType type, Body&& body) {
  if (element_size(type) == 4) {
    body(int32_t{});
  } else {
    body(int16_t{});
  }
}

}  // namespace

void relu(const void* input, ElementType type, int64_t count, void* output, uint8_t* mask, int64_t first_octet,
          int64_t last_octet) {
  const int64_t blocks = whole_blocks(count, first_octet, last_octet);
  with_word(type, [&]<class Word>(Word /*tag*/) {
    relu_blocks(static_cast<const Word*>(input) + first_octet * kOctet, infinity_bits<Word>(type),
                static_cast<Word*>(output) + first_octet * kOctet, mask + first_octet, blocks);
  });
  reference::relu(input, type, count, output, mask, first_octet + blocks * kBlockOctets, last_octet);
}

void apply_mask(const void* input, ElementType type, int64_t count, const uint8_t* mask, void* output,
                int64_t first_octet, int64_t last_octet) {
  const int64_t blocks = whole_blocks(count, first_octet, last_octet);
  with_word(type, [&]<class Word>(Word /*tag*/) {
    apply_mask_blocks(static_cast<const Word*>(input) + first_octet * kOctet, mask + first_octet,
                      static_cast<Word*>(output) + first_octet * kOctet, blocks);
  });
  reference::apply_mask(input, type, count, mask, output, first_octet + blocks * kBlockOctets, last_octet);
}

#endif

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "src/cpu/dispatch.h"

namespace actnn::cpu {

HWY_EXPORT(relu);
HWY_EXPORT(apply_mask);

void relu(const void* input, ElementType type, int64_t count, void* output, uint8_t* mask, int64_t first_octet,
          int64_t last_octet) {
  if (use_reference()) {
    return reference::relu(input, type, count, output, mask, first_octet, last_octet);
  }
  HWY_DYNAMIC_DISPATCH(relu)(input, type, count, output, mask, first_octet, last_octet);
}

void apply_mask(const void* input, ElementType type, int64_t count, const uint8_t* mask, void* output,
                int64_t first_octet, int64_t last_octet) {
  if (use_reference()) {
    return reference::apply_mask(input, type, count, mask, output, first_octet, last_octet);
  }
  HWY_DYNAMIC_DISPATCH(apply_mask)(input, type, count, mask, output, first_octet, last_octet);
}

}  // namespace actnn::cpu
#endif
