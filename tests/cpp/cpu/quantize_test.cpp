#include "actnn/cpu/quantize.h"

#include <gtest/gtest.h>

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
  bool stochastic = true;
};

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
                                .random = {0x123456789ABCDEF0, 77},
                                .first_octet = 0xFFFFFFFC,  // the counter's carry is crossed
                                .stochastic = c.stochastic};
  // In two parts, the second first: groups are independent.
  quantize_groups(segment, std::min(split, groups), groups);
  quantize_groups(segment, 0, std::min(split, groups));
  return packed;
}

std::vector<uint8_t> dequantize(const Case& c, const Packed& packed) {
  std::vector<uint8_t> elements(static_cast<size_t>(c.count * element_size(c.type)) + kGuard, kGuardByte);
  const DequantizeSegment segment{.parameters = packed.parameters.data(),
                                  .codes = packed.codes.data(),
                                  .count = c.count,
                                  .group_size = c.group_size,
                                  .bits = c.bits,
                                  .type = c.type,
                                  .elements = elements.data()};
  dequantize_groups(segment, 0, group_count(c.count, c.group_size));
  return elements;
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
    for (const int64_t group_size : {32, 96, 256, 512}) {
      for (const bool special : {false, true}) {
        for (const bool stochastic : {false, true}) {
          const Case c{type, bits, count, group_size, stochastic};
          const std::vector<uint8_t> elements =
              as_elements(random_values(count, static_cast<unsigned>(count + bits), special), type);
          Packed expected;
          std::vector<uint8_t> expected_elements;
          select_target("reference");
          expected = quantize(c, elements, 1);
          expected_elements = dequantize(c, expected);
          for_targets([&](const std::string& target) {
            const Packed packed = quantize(c, elements, 2);
            ASSERT_EQ(packed, expected) << target << ", count " << count << ", group size " << group_size;
            expect_guard(packed.codes);
            expect_guard(packed.parameters);
            const std::vector<uint8_t> decoded = dequantize(c, packed);
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
    const std::vector<uint8_t> expected_elements = dequantize(c, expected);
    for_targets([&](const std::string& target) {
      ASSERT_EQ(quantize(c, elements, 3), expected) << target << ", scale " << scale;
      ASSERT_EQ(dequantize(c, expected), expected_elements) << target << ", scale " << scale;
    });
  }
}

/// Large results are written around the cache if they lie well.
TEST(QuantizeTargetsLarge, AllDecodeToTheSameElements) {
  constexpr int64_t kCount = int64_t{1} << 21;
  constexpr size_t kCacheLine = 64;
  for (const ElementType type : kElementTypes) {
    const Case c{type, 4, kCount, 256};
    select_target("reference");
    const Packed packed = quantize(c, as_elements(random_values(kCount, 11, false), type), 1);
    const std::vector<uint8_t> expected = dequantize(c, packed);
    for_targets([&](const std::string& target) {
      std::vector<uint8_t> memory(static_cast<size_t>(kCount * element_size(type)) + kCacheLine + kGuard, kGuardByte);
      auto* elements = memory.data() + kCacheLine - reinterpret_cast<uintptr_t>(memory.data()) % kCacheLine;
      dequantize_groups({.parameters = packed.parameters.data(),
                         .codes = packed.codes.data(),
                         .count = kCount,
                         .group_size = c.group_size,
                         .bits = c.bits,
                         .type = type,
                         .elements = elements},
                        0, group_count(kCount, c.group_size));
      EXPECT_EQ(std::memcmp(elements, expected.data(), expected.size() - kGuard), 0) << target;
      expect_guard(memory);
    });
  }
}

// The format must not change by accident: these bytes were computed by the reference in
// tests/python/packed_format.py.
TEST(QuantizeGolden, BytesAreUnchanged) {
  std::vector<float> values;
  for (int i = 0; i < 40; ++i) {
    values.push_back(static_cast<float>(i * i % 17) / 8.0F - 1.0F);
  }
  const Case c{ElementType::kFloat32, 3, 40, 32};
  const Packed packed = quantize(c, as_elements(values, c.type), 1);
  const std::vector<uint8_t> parameters(packed.parameters.begin(), packed.parameters.end() - kGuard);
  const std::vector<uint8_t> codes(packed.codes.begin(), packed.codes.end() - kGuard);
  EXPECT_EQ(parameters, (std::vector<uint8_t>{0x80, 0xbf, 0x93, 0x3e, 0x80, 0xbf, 0x93, 0x3e}));
  EXPECT_EQ(codes, (std::vector<uint8_t>{0x88, 0x78, 0xe6, 0xf5, 0xb3, 0x2f, 0x0, 0xc2, 0x33, 0xb6, 0x1d, 0x7e, 0xa,
                                         0x22, 0x9e}));
}

}  // namespace
}  // namespace actnn::cpu
