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

  GroupRange range;
  for (int64_t i = begin; i < end; ++i) {
    range.add(to_float(elements[i]));
  }
  const GroupParameters parameters = choose_grid(range, segment.bits, segment.type);
  std::memcpy(segment.parameters + group * static_cast<int64_t>(sizeof parameters), &parameters, sizeof parameters);

  const EncodingGrid grid = encoding_grid(parameters, segment.type);
  const OctetSteps steps(segment.bits);
  for (int64_t octet = begin / kOctet; octet * kOctet < end; ++octet) {
    uint64_t codes = 0;
    if (!is_nan(grid.minimum)) {
      const OctetNoise noise = segment.random.octet(segment.first_octet + static_cast<uint64_t>(octet));
      for (int k = 0; k < kOctet && octet * kOctet + k < end; ++k) {
        const float x = to_float(elements[octet * kOctet + k]);
        const uint64_t code =
            is_finite(x) ? encode(x, grid, segment.rounding == Rounding::kNearest ? kHalfStep : noise[k], segment.bits)
                         : highest_code(segment.bits);
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
  const bool dithered = segment.header.dithered();
  const DecodingGrid grid(parameters, segment.type, dithered);
  const bool has_nan_code = (parameters.step & kHasNanCode) != 0;
  const OctetSteps steps(segment.bits);
  for (int64_t octet = begin / kOctet; octet * kOctet < end; ++octet) {
    uint64_t packed = 0;
    std::memcpy(&packed, segment.codes + octet * segment.bits, static_cast<size_t>(segment.bits));
    const uint64_t codes = unpack_octet(packed, steps);
    const OctetNoise noise = segment.header.random().octet(segment.first_octet + static_cast<uint64_t>(octet));
    for (int k = 0; k < kOctet && octet * kOctet + k < end; ++k) {
      const auto code = static_cast<uint32_t>((codes >> (8 * k)) & 0xFF);
      const float value = grid.value(dithered ? dithered_code(code, noise[k]) : undithered_code(code));
      const bool is_nan_code = has_nan_code && code == highest_code(segment.bits);
      store_rounded(is_nan_code || is_nan(grid.start) ? float_of(kNanFloat32) : value, &elements[octet * kOctet + k]);
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
