#include <algorithm>
#include <cstring>

#include "actnn/core/rounding.h"
#include "actnn/cpu/quantize.h"

namespace actnn::cpu::reference {
namespace {

template <class Element>
void quantize_group(const QuantizeSegment& segment, int64_t group) {
  const int64_t begin = group * segment.group_size;
  const int64_t end = std::min(begin + segment.group_size, segment.count);
  const auto* elements = static_cast<const Element*>(segment.elements);

  float smallest = to_float(elements[begin]);
  float largest = smallest;
  bool all_finite = true;
  for (int64_t i = begin; i < end; ++i) {
    const float x = to_float(elements[i]);
    all_finite = all_finite && is_finite(x);
    smallest = x < smallest ? x : smallest;
    largest = x > largest ? x : largest;
  }
  const GroupParameters parameters = choose_grid(smallest, largest, all_finite, segment.bits, segment.type);
  std::memcpy(segment.parameters + group * static_cast<int64_t>(sizeof parameters), &parameters, sizeof parameters);

  const EncodingGrid grid = encoding_grid(parameters, segment.bits, segment.type);
  const OctetSteps steps(segment.bits);
  for (int64_t octet = begin / kOctet; octet * kOctet < end; ++octet) {
    uint64_t codes = 0;
    if (!is_nan(grid.minimum)) {
      const PhiloxBlock random = segment.random.block(segment.first_octet + static_cast<uint64_t>(octet));
      for (int k = 0; k < kOctet && octet * kOctet + k < end; ++k) {
        const uint32_t noise =
            segment.stochastic ? random16(random, k) >> (16 - fraction_bits(segment.bits)) : half_step(segment.bits);
        const uint64_t code = encode(to_float(elements[octet * kOctet + k]), grid, noise, segment.bits);
        codes |= code << (8 * k);
      }
    }
    const uint64_t packed = pack_octet(codes, steps);
    std::memcpy(segment.codes + octet * segment.bits, &packed, static_cast<size_t>(segment.bits));
  }
}

template <class Element>
void dequantize_group(const DequantizeSegment& segment, int64_t group) {
  const int64_t begin = group * segment.group_size;
  const int64_t end = std::min(begin + segment.group_size, segment.count);
  auto* elements = static_cast<Element*>(segment.elements);

  GroupParameters parameters;
  std::memcpy(&parameters, segment.parameters + group * static_cast<int64_t>(sizeof parameters), sizeof parameters);
  const float minimum = parameter_to_float(parameters.minimum, segment.type);
  const float step = parameter_to_float(parameters.step, segment.type);
  const OctetSteps steps(segment.bits);
  for (int64_t octet = begin / kOctet; octet * kOctet < end; ++octet) {
    uint64_t packed = 0;
    std::memcpy(&packed, segment.codes + octet * segment.bits, static_cast<size_t>(segment.bits));
    const uint64_t codes = unpack_octet(packed, steps);
    for (int k = 0; k < kOctet && octet * kOctet + k < end; ++k) {
      const auto code = static_cast<uint32_t>((codes >> (8 * k)) & 0xFF);
      const float value = is_nan(minimum) ? float_of(kNanFloat32) : decode(code, minimum, step);
      store_rounded(value, &elements[octet * kOctet + k]);
    }
  }
}

}  // namespace

void quantize_groups(const QuantizeSegment& segment, int64_t first_group, int64_t last_group) {
  for (int64_t group = first_group; group < last_group; ++group) {
    with_element_type(segment.type, [&]<class Element>(Element /*tag*/) { quantize_group<Element>(segment, group); });
  }
}

void dequantize_groups(const DequantizeSegment& segment, int64_t first_group, int64_t last_group) {
  for (int64_t group = first_group; group < last_group; ++group) {
    with_element_type(segment.type, [&]<class Element>(Element /*tag*/) { dequantize_group<Element>(segment, group); });
  }
}

}  // namespace actnn::cpu::reference
