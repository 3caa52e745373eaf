#include "actnn/cpu/quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "test_data.h"

namespace actnn::cpu {
namespace {

struct Packed {
  std::vector<uint8_t> parameters;
  std::vector<uint8_t> codes;
  bool operator==(const Packed&) const = default;
};

struct Case {
  ElementType type;
  int bits;
  int64_t count;
  int64_t group_size;
  Rounding rounding = Rounding::kDithered;
};

constexpr RandomState kRandom{0x123456789ABCDEF0, 77};
constexpr uint64_t kFirstOctet = 0x1FFFFFFF8;  // the carry of the counter's low word is crossed

/// Bytes behind the output that must stay as they are.
constexpr size_t kGuard = 64;
constexpr uint8_t kGuardByte = 0xA5;

Packed quantize(const Case& c, const std::vector<uint8_t>& elements, int64_t split) {
  const int64_t groups = group_count(c.count, c.group_size);
  Packed packed{std::vector<uint8_t>(static_cast<size_t>(groups) * 4 + kGuard, kGuardByte),
                std::vector<uint8_t>(static_cast<size_t>(code_bytes(c.count, c.bits)) + kGuard, kGuardByte)};
  const QuantizeSegment segment{.elements = elements.data(),
                                .type = c.type,
                                .count = c.count,
                                .group_size = c.group_size,
                                .bits = c.bits,
                                .parameters = packed.parameters.data(),
                                .codes = packed.codes.data(),
                                .random = kRandom,
                                .first_octet = kFirstOctet,
                                .rounding = c.rounding};
  // In two parts, the second first: groups are independent.
  quantize_groups(segment, std::min(split, groups), groups);
  quantize_groups(segment, 0, std::min(split, groups));
  return packed;
}

DequantizeSegment packed_segment(const Case& c, const Packed& packed, uint8_t* elements) {
  return {.header = PackedHeader::of(kRandom, c.rounding),
          .parameters = packed.parameters.data(),
          .codes = packed.codes.data(),
          .count = c.count,
          .group_size = c.group_size,
          .bits = c.bits,
          .type = c.type,
          .first_octet = kFirstOctet,
          .elements = elements};
}

std::vector<uint8_t> dequantize(const Case& c, const Packed& packed, int64_t split) {
  std::vector<uint8_t> elements(static_cast<size_t>(c.count * element_size(c.type)) + kGuard, kGuardByte);
  const DequantizeSegment segment = packed_segment(c, packed, elements.data());
  const int64_t groups = group_count(c.count, c.group_size);
  dequantize_groups(segment, std::min(split, groups), groups);
  dequantize_groups(segment, 0, std::min(split, groups));
  return elements;
}

std::vector<float> as_floats(const std::vector<uint8_t>& bytes, ElementType type, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  with_element_type(type, [&]<class Element>(Element element) {
    for (size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&element, bytes.data() + i * sizeof element, sizeof element);
      values[i] = to_float(element);
    }
  });
  return values;
}

void expect_guard(const std::vector<uint8_t>& bytes) {
  for (size_t i = bytes.size() - kGuard; i < bytes.size(); ++i) {
    ASSERT_EQ(bytes[i], kGuardByte) << "written beyond the end";
  }
}

class QuantizeTargets : public testing::TestWithParam<std::tuple<ElementType, int>> {};
INSTANTIATE_TEST_SUITE_P(All, QuantizeTargets,
                         testing::Combine(testing::ValuesIn(kElementTypes), testing::Range(1, 9)));

TEST_P(QuantizeTargets, AllGiveTheSameBytes) {
  const auto [type, bits] = GetParam();
  for (const int64_t count : {1, 5, 8, 63, 64, 65, 255, 256, 257, 1000, 4096}) {
    for (const int64_t group_size : {32, 96, 256, 512, 2048}) {
      for (const bool special : {false, true}) {
        for (const Rounding rounding : {Rounding::kDithered, Rounding::kStochastic, Rounding::kNearest}) {
          const Case c{type, bits, count, group_size, rounding};
          const std::vector<uint8_t> elements =
              as_elements(random_values(count, static_cast<unsigned>(count + bits), special), type);
          select_target("reference");
          const Packed expected = quantize(c, elements, 1);
          const std::vector<uint8_t> expected_elements = dequantize(c, expected, 0);
          for_targets([&](const std::string& target) {
            const Packed packed = quantize(c, elements, 2);
            ASSERT_EQ(packed, expected) << target << ", count " << count << ", group size " << group_size;
            expect_guard(packed.codes);
            expect_guard(packed.parameters);
            const std::vector<uint8_t> decoded = dequantize(c, packed, 1);
            ASSERT_EQ(decoded, expected_elements) << target << ", count " << count << ", group size " << group_size;
            expect_guard(decoded);
          });
        }
      }
    }
  }
}

TEST_P(QuantizeTargets, AllGiveTheSameBytesForHugeAndTinyGroups) {
  const auto [type, bits] = GetParam();
  for (const float scale : {1e-44F, 1e-38F, 3e-5F, 1e4F, 1e38F}) {
    std::vector<float> values = random_values(600, 9, false);
    for (float& value : values) {
      value *= scale;
    }
    const Case c{type, bits, 600, 128};
    const std::vector<uint8_t> elements = as_elements(values, type);
    select_target("reference");
    const Packed expected = quantize(c, elements, 1);
    const std::vector<uint8_t> expected_elements = dequantize(c, expected, 2);
    for_targets([&](const std::string& target) {
      ASSERT_EQ(quantize(c, elements, 3), expected) << target << ", scale " << scale;
      ASSERT_EQ(dequantize(c, expected, 1), expected_elements) << target << ", scale " << scale;
    });
  }
}

/// Grids of several groups are chosen at once, and some of these cannot be represented.
TEST_P(QuantizeTargets, AllChooseTheSameGrids) {
  const auto [type, bits] = GetParam();
  std::mt19937 random(31);
  std::vector<float> values;
  for (int group = 0; group < 1001; ++group) {
    const float first = any_finite(random);
    const float other = group % 3 == 0 ? any_finite(random) : first * (1.0F + 0.01F * static_cast<float>(group % 7));
    for (int i = 0; i < 32; ++i) {
      values.push_back(i % 2 == 0 ? first : other);
    }
  }
  const Case c{type, bits, static_cast<int64_t>(values.size()), 32};
  const std::vector<uint8_t> elements = as_elements(values, type);
  select_target("reference");
  const Packed expected = quantize(c, elements, 1);
  for_targets([&](const std::string& target) { ASSERT_EQ(quantize(c, elements, 2), expected) << target; });
}

/// Large results are written around the cache if they lie well.
TEST(QuantizeTargetsLarge, AllDecodeToTheSameElements) {
  constexpr int64_t kCount = int64_t{1} << 21;
  constexpr size_t kCacheLine = 64;
  for (const ElementType type : kElementTypes) {
    const Case c{type, 4, kCount, 256};
    select_target("reference");
    const Packed packed = quantize(c, as_elements(random_values(kCount, 11, false), type), 1);
    const std::vector<uint8_t> expected = dequantize(c, packed, 0);
    for_targets([&](const std::string& target) {
      std::vector<uint8_t> memory(static_cast<size_t>(kCount * element_size(type)) + kCacheLine + kGuard, kGuardByte);
      auto* elements = memory.data() + kCacheLine - reinterpret_cast<uintptr_t>(memory.data()) % kCacheLine;
      dequantize_groups(packed_segment(c, packed, elements), 0, group_count(kCount, c.group_size));
      EXPECT_EQ(std::memcmp(elements, expected.data(), expected.size() - kGuard), 0) << target;
      expect_guard(memory);
    });
  }
}

/// 256 elements of 8 groups, of which element 37 of the second group is not finite.
std::vector<float> values_with(float special) {
  std::vector<float> values = random_values(256, 5, false);
  values[32 + 5] = special;
  return values;
}

TEST(QuantizeSpecial, ElementsThatAreNotFiniteAreNanAndAlone) {
  for (const ElementType type : kElementTypes) {
    for (int bits = 2; bits <= kMaxBits; ++bits) {
      for (const uint32_t special : {kNanFloat32, kInfinityFloat32, 0xFF800000u, 0xFFC12345u}) {
        const Case c{type, bits, 256, 32};
        const std::vector<uint8_t> elements = as_elements(values_with(float_of(special)), type);
        const std::vector<float> input = as_floats(elements, type, c.count);
        for_targets([&](const std::string& target) {
          const std::vector<float> output = as_floats(dequantize(c, quantize(c, elements, 1), 1), type, c.count);
          for (size_t i = 0; i < output.size(); ++i) {
            ASSERT_EQ(is_nan(output[i]), i == 37) << target << ", element " << i;
            if (i != 37) {
              // The range of 32 normal numbers, over at least 2 steps.
              ASSERT_NEAR(output[i], input[i], 2.0F) << target << ", element " << i;
            }
          }
        });
      }
    }
  }
}

TEST(QuantizeSpecial, OfOneBitTheWholeGroupIsNan) {
  for (const ElementType type : kElementTypes) {
    const Case c{type, 1, 256, 32};
    const std::vector<uint8_t> elements = as_elements(values_with(float_of(kInfinityFloat32)), type);
    const std::vector<float> output = as_floats(dequantize(c, quantize(c, elements, 1), 1), type, c.count);
    for (size_t i = 0; i < output.size(); ++i) {
      EXPECT_EQ(is_nan(output[i]), i / 32 == 1) << "element " << i;
    }
  }
}

// What autograd gets: with the generator's noise instead of all 256, and the header's state.
TEST(QuantizeNoise, ErrorIsUniformInAStepWhateverTheElement) {
  constexpr int64_t kCount = int64_t{1} << 17;
  for (const int bits : {1, 2, 4, 8}) {
    const Case c{ElementType::kFloat32, bits, kCount, 256};
    const std::vector<float> input = random_values(kCount, 3, false);
    const Packed packed = quantize(c, as_elements(input, c.type), 1);
    const std::vector<float> output = as_floats(dequantize(c, packed, 1), c.type, kCount);
    double sum = 0.0;
    double squares = 0.0;
    double products = 0.0;
    for (size_t i = 0; i < output.size(); ++i) {
      GroupParameters parameters;
      std::memcpy(&parameters, packed.parameters.data() + i / 256 * sizeof parameters, sizeof parameters);
      const double error = (output[i] - double{input[i]}) / step_to_float(parameters.step);
      ASSERT_LE(std::abs(error), 0.501);
      sum += error;
      squares += error * error;
      products += error * input[i];
    }
    // Five standard deviations of the means of so many elements of variance 1 / 12, 1 / 180 and 1 / 12.
    EXPECT_NEAR(sum / kCount, 0.0, 5 * std::sqrt(1.0 / 12 / kCount));
    EXPECT_NEAR(squares / kCount, 1.0 / 12, 5 * std::sqrt(1.0 / 180 / kCount));
    EXPECT_NEAR(products / kCount, 0.0, 5 * std::sqrt(1.0 / 12 / kCount));
  }
}

TEST(QuantizeNoise, DitherIsInTheDecoderAlone) {
  const std::vector<uint8_t> elements = as_elements(random_values(600, 4, false), ElementType::kFloat32);
  const Case dithered{ElementType::kFloat32, 3, 600, 256, Rounding::kDithered};
  const Case stochastic{ElementType::kFloat32, 3, 600, 256, Rounding::kStochastic};
  const Packed packed = quantize(dithered, elements, 1);
  EXPECT_EQ(quantize(stochastic, elements, 1), packed);
  EXPECT_NE(dequantize(stochastic, packed, 1), dequantize(dithered, packed, 1));
}

TEST(QuantizeNoise, UnditheredValuesArePointsOfTheGrid) {
  const std::vector<float> input = random_values(256, 4, false);
  for (const Rounding rounding : {Rounding::kStochastic, Rounding::kNearest}) {
    const Case c{ElementType::kFloat32, 4, 256, 256, rounding};
    const Packed packed = quantize(c, as_elements(input, c.type), 1);
    GroupParameters parameters;
    std::memcpy(&parameters, packed.parameters.data(), sizeof parameters);
    const float minimum = parameter_to_float(parameters.minimum, c.type);
    const float step = step_to_float(parameters.step);
    const std::vector<float> output = as_floats(dequantize(c, packed, 0), c.type, c.count);
    for (size_t i = 0; i < output.size(); ++i) {
      const float code = std::round((output[i] - minimum) / step);
      ASSERT_EQ(output[i], minimum + code * step);
      ASSERT_LE(std::abs(output[i] - input[i]), (rounding == Rounding::kNearest ? 0.5F : 1.0F) * 1.004F * step);
    }
  }
}

// The format must not change by accident: these bytes and values were computed by a second implementation, in Python
// with exact fractions.
TEST(QuantizeGolden, BytesAndValuesAreUnchanged) {
  std::vector<float> values(40);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i * i % 17) / 8.0F - 1.0F;
  }
  const Case c{ElementType::kFloat32, 3, 40, 32};
  const Packed packed = quantize(c, as_elements(values, c.type), 1);
  const std::vector<uint8_t> parameters(packed.parameters.begin(), packed.parameters.end() - kGuard);
  const std::vector<uint8_t> codes(packed.codes.begin(), packed.codes.end() - kGuard);
  EXPECT_EQ(parameters, (std::vector<uint8_t>{0x80, 0xbf, 0x93, 0x3e, 0x80, 0xbf, 0x93, 0x3e}));
  EXPECT_EQ(codes, (std::vector<uint8_t>{0x40, 0xf8, 0xe5, 0xed, 0xb3, 0x4f, 0x00, 0xc4, 0x33, 0x6e, 0x9f, 0x9d, 0x0a,
                                         0x20, 0x9e}));
  const std::vector<float> decoded = as_floats(dequantize(c, packed, 1), c.type, 8);
  const std::vector<float> expected{-1.1362648F, -0.924297333F,  -0.608028412F, 0.231990814F,
                                    1.1123848F,  -0.0753059387F, -0.648403168F, 0.964344025F};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_FLOAT_EQ(decoded[i], expected[i]);
  }
}

}  // namespace
}  // namespace actnn::cpu
