#include <algorithm>

#include "actnn/core/mask.h"
#include "actnn/cpu/mask.h"

namespace actnn::cpu {
namespace {

template <class Element>
void relu_octets(const Element* input, int64_t count, Element* output, uint8_t* mask, int64_t first, int64_t last) {
  for (int64_t octet = first; octet < last; ++octet) {
    const int64_t begin = octet * kOctet;
    const int64_t end = std::min(begin + kOctet, count);
    unsigned bits = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Element x = input[i];
      bits |= static_cast<unsigned>(gradient_passes(x)) << (i - begin);
      output[i] = rectified(x);
    }
    mask[octet] = static_cast<uint8_t>(bits);
  }
}

template <class Element>
void apply_mask_octets(const Element* input, int64_t count, const uint8_t* mask, Element* output, int64_t first,
                       int64_t last) {
  for (int64_t octet = first; octet < last; ++octet) {
    const int64_t begin = octet * kOctet;
    const int64_t end = std::min(begin + kOctet, count);
    for (int64_t i = begin; i < end; ++i) {
      output[i] = ((mask[octet] >> (i - begin)) & 1) != 0 ? input[i] : Element{};
    }
  }
}

}  // namespace

void pack_mask(const uint8_t* bools, int64_t count, uint8_t* mask, int64_t first_octet, int64_t last_octet) {
  for (int64_t octet = first_octet; octet < last_octet; ++octet) {
    const int64_t begin = octet * kOctet;
    const int64_t size = std::min(kOctet, count - begin);
    unsigned bits = 0;
    for (int64_t k = 0; k < size; ++k) {
      bits |= static_cast<unsigned>(bools[begin + k] != 0) << k;
    }
    mask[octet] = static_cast<uint8_t>(bits);
  }
}

void unpack_mask(const uint8_t* mask, int64_t count, uint8_t* bools, int64_t first_octet, int64_t last_octet) {
  for (int64_t octet = first_octet; octet < last_octet; ++octet) {
    const int64_t begin = octet * kOctet;
    const int64_t size = std::min(kOctet, count - begin);
    for (int64_t k = 0; k < size; ++k) {
      bools[begin + k] = (mask[octet] >> k) & 1;
    }
  }
}

namespace reference {

void relu(const void* input, ElementType type, int64_t count, void* output, uint8_t* mask, int64_t first_octet,
          int64_t last_octet) {
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    relu_octets(static_cast<const Element*>(input), count, static_cast<Element*>(output), mask, first_octet,
                last_octet);
  });
}

void apply_mask(const void* input, ElementType type, int64_t count, const uint8_t* mask, void* output,
                int64_t first_octet, int64_t last_octet) {
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    apply_mask_octets(static_cast<const Element*>(input), count, mask, static_cast<Element*>(output), first_octet,
                      last_octet);
  });
}

}  // namespace reference
}  // namespace actnn::cpu
