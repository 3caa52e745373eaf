#include <cstring>

#include "actnn/cpu/quantize.h"
#include "actnn/cuda/quantize.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;

constexpr RandomState kState{0x123456789ABCDEF0, 77};

struct Case {
  ElementType type;
  int64_t elements;  ///< of a sample
  int64_t group_size;
  std::vector<uint8_t> bits;
  int64_t spare = 0;  ///< room beyond what the codes need, in bytes
  Rounding rounding = Rounding::kDithered;

  int64_t samples() const { return static_cast<int64_t>(bits.size()); }
  int64_t groups() const { return group_count(elements, group_size); }
  int64_t codes_of(int64_t sample) const {
    return align_up(code_bytes(elements, bits[static_cast<size_t>(sample)]), kSegmentAlignment);
  }
  int64_t room() const {
    int64_t bytes = spare;
    for (int64_t sample = 0; sample < samples(); ++sample) {
      bytes += codes_of(sample);
    }
    return bytes;
  }
  size_t packed_size() const { return static_cast<size_t>(codes_offset(samples() * groups()) + room()); }
};

std::ostream& operator<<(std::ostream& stream, const Case& c) {
  return stream << c.samples() << " samples of " << c.elements << " elements of " << element_size(c.type)
                << " bytes, groups of " << c.group_size << ", " << c.spare << " spare bytes, rounding "
                << static_cast<int>(c.rounding);
}

/// Calls body(sample, its parameters, its codes), both as offsets in the packed bytes.
template <class Body>
void for_samples(const Case& c, Body&& body) {
  int64_t codes = codes_offset(c.samples() * c.groups());
  for (int64_t sample = 0; sample < c.samples(); ++sample) {
    body(sample, kHeaderBytes + sample * c.groups() * static_cast<int64_t>(sizeof(GroupParameters)), codes);
    codes += c.codes_of(sample);
  }
}

std::vector<uint8_t> expected_bytes(const Case& c, const std::vector<uint8_t>& elements) {
  std::vector<uint8_t> packed(c.packed_size());
  const auto header = PackedHeader::of(c.rounding == Rounding::kNearest ? RandomState{} : kState, c.rounding);
  std::memcpy(packed.data(), &header, sizeof header);
  for_samples(c, [&](int64_t sample, int64_t parameters, int64_t codes) {
    cpu::reference::quantize_groups({.elements = elements.data() + sample * c.elements * element_size(c.type),
                                     .type = c.type,
                                     .count = c.elements,
                                     .group_size = c.group_size,
                                     .bits = c.bits[static_cast<size_t>(sample)],
                                     .parameters = packed.data() + parameters,
                                     .codes = packed.data() + codes,
                                     .random = header.random(),
                                     .first_octet = first_octet_of_sample(sample, c.elements),
                                     .rounding = c.rounding},
                                    0, c.groups());
  });
  return packed;
}

std::vector<uint8_t> expected_elements(const Case& c, const std::vector<uint8_t>& packed) {
  std::vector<uint8_t> elements(static_cast<size_t>(c.samples() * c.elements * element_size(c.type)));
  PackedHeader header;
  std::memcpy(&header, packed.data(), sizeof header);
  for_samples(c, [&](int64_t sample, int64_t parameters, int64_t codes) {
    cpu::reference::dequantize_groups({.header = header,
                                       .parameters = packed.data() + parameters,
                                       .codes = packed.data() + codes,
                                       .count = c.elements,
                                       .group_size = c.group_size,
                                       .bits = c.bits[static_cast<size_t>(sample)],
                                       .type = c.type,
                                       .first_octet = first_octet_of_sample(sample, c.elements),
                                       .elements = elements.data() + sample * c.elements * element_size(c.type)},
                                      0, c.groups());
  });
  return elements;
}

std::vector<uint8_t> quantized(const Case& c, const std::vector<uint8_t>& elements, int64_t room) {
  const GpuBytes input(elements);
  const GpuBytes bits(c.bits);
  const GpuArray<int64_t> offsets(c.samples() + 1);
  const GpuBytes packed(static_cast<size_t>(codes_offset(c.samples() * c.groups()) + room));
  check(quantize_per_sample(
      {.elements = input.as<void>(),
       .type = c.type,
       .count = c.elements,
       .group_size = c.group_size,
       .bits = 0,
       .packed = packed.as<uint8_t>(),
       .random = {.shift = kState},
       .rounding = c.rounding},
      {.bits = bits.as<uint8_t>(), .samples = c.samples(), .room = room, .code_offsets = offsets.data()}, nullptr));
  return packed.read();
}

std::vector<uint8_t> dequantized(const Case& c, const std::vector<uint8_t>& bytes, int64_t room) {
  const GpuBytes packed(bytes);
  const GpuBytes bits(c.bits);
  const GpuArray<int64_t> offsets(c.samples() + 1);
  const GpuBytes output(static_cast<size_t>(c.samples() * c.elements * element_size(c.type)));
  check(dequantize_per_sample(
      {.packed = packed.as<uint8_t>(),
       .count = c.elements,
       .group_size = c.group_size,
       .bits = 0,
       .type = c.type,
       .elements = output.as<void>()},
      {.bits = bits.as<uint8_t>(), .samples = c.samples(), .room = room, .code_offsets = offsets.data()}, nullptr));
  return output.read();
}

void expect_the_bytes_of_the_cpu(const Case& c) {
  const std::vector<uint8_t> elements = as_elements(random_values(c.samples() * c.elements, 3, true), c.type);
  const std::vector<uint8_t> packed = expected_bytes(c, elements);
  ASSERT_EQ(quantized(c, elements, c.room()), packed) << c;
  ASSERT_EQ(dequantized(c, packed, c.room()), expected_elements(c, packed)) << c;
}

std::vector<uint8_t> widths(int64_t samples) {
  std::vector<uint8_t> bits(static_cast<size_t>(samples));
  for (size_t i = 0; i < bits.size(); ++i) {
    bits[i] = static_cast<uint8_t>(1 + (i * 5 + 2) % 8);
  }
  return bits;
}

using QuantizePerSample = GpuTestOf<ElementType>;
INSTANTIATE_TEST_SUITE_P(All, QuantizePerSample, testing::ValuesIn(kElementTypes));

TEST_P(QuantizePerSample, GivesTheBytesOfTheCpu) {
  for (const int64_t group_size : {32, 96, 256, 1024}) {
    for (const int64_t elements : {1, 8, 105, 256, 600, 1031, 2048}) {
      for (const int64_t samples : {1, 8, 19}) {
        expect_the_bytes_of_the_cpu({GetParam(), elements, group_size, widths(samples)});
      }
    }
  }
}

TEST_P(QuantizePerSample, GivesTheBytesOfTheCpuHoweverItRounds) {
  for (const Rounding rounding : {Rounding::kStochastic, Rounding::kNearest}) {
    for (const int64_t elements : {105, 2600}) {
      expect_the_bytes_of_the_cpu({GetParam(), elements, 256, widths(9), 0, rounding});
    }
  }
}

TEST_P(QuantizePerSample, FillsSpareRoomWithZeros) {
  for (const int64_t spare : {1, 4, 77}) {
    expect_the_bytes_of_the_cpu({GetParam(), 105, 256, widths(9), spare});
  }
}

TEST_P(QuantizePerSample, HandlesMoreSamplesThanABlockHasThreads) {
  expect_the_bytes_of_the_cpu({GetParam(), 40, 32, widths(2500)});
}

TEST_P(QuantizePerSample, DoesNothingForNothing) {
  expect_the_bytes_of_the_cpu({GetParam(), 100, 256, {}, 12});
  expect_the_bytes_of_the_cpu({GetParam(), 0, 256, widths(3), 12});
}

/// Whether each sample decodes to NaN only (1), to none (0), or to something else (-1).
std::vector<int> nan_samples(const Case& c, const std::vector<uint8_t>& decoded) {
  std::vector<int> result;
  for (int64_t sample = 0; sample < c.samples(); ++sample) {
    int64_t nans = 0;
    for (int64_t i = 0; i < c.elements; ++i) {
      float x = 0;
      std::memcpy(&x, decoded.data() + (sample * c.elements + i) * 4, sizeof x);
      nans += is_nan(x) ? 1 : 0;
    }
    result.push_back(nans == 0 ? 0 : nans == c.elements ? 1 : -1);
  }
  return result;
}

class QuantizePerSampleOnce : public GpuTest {};

TEST_F(QuantizePerSampleOnce, MakesSamplesOfImpossibleWidthsNan) {
  const Case c{ElementType::kFloat32, 600, 256, {4, 0, 8, 9, 255, 2}};
  const int64_t room = 4 * 600;
  const std::vector<uint8_t> elements = as_elements(random_values(6 * 600, 3, false), c.type);
  const std::vector<uint8_t> decoded = dequantized(c, quantized(c, elements, room), room);
  EXPECT_EQ(nan_samples(c, decoded), (std::vector<int>{0, 1, 0, 1, 1, 0}));
}

TEST_F(QuantizePerSampleOnce, MakesSamplesWithoutRoomNanAndWritesNothingBehindIt) {
  const Case c{ElementType::kFloat32, 600, 256, {4, 4, 4}};
  const std::vector<uint8_t> elements = as_elements(random_values(3 * 600, 3, false), c.type);
  for (const int64_t room : {int64_t{0}, int64_t{299}, c.room() - 1}) {
    const int fits = static_cast<int>(room / 300);
    const std::vector<uint8_t> decoded = dequantized(c, quantized(c, elements, room), room);
    EXPECT_EQ(nan_samples(c, decoded), (std::vector<int>{fits > 0 ? 0 : 1, fits > 1 ? 0 : 1, fits > 2 ? 0 : 1}));
  }
}

}  // namespace
}  // namespace actnn::cuda
