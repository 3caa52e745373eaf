#include "actnn/cpu/columns.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "test_data.h"

namespace actnn::cpu {
namespace {

struct Case {
  ElementType type;
  ColumnLayout<int64_t> layout;
  Rounding rounding = Rounding::kDithered;
  RandomState random{0x123456789ABCDEF0, 77};
};

std::string text_of(const Case& c) {
  return std::to_string(c.layout.rows) + " x " + std::to_string(c.layout.channels) + ", " +
         std::to_string(c.layout.bits) + " bits, groups of " + std::to_string(c.layout.group_rows);
}

/// Bytes around results that must stay as they are.
constexpr size_t kGuard = 64;
constexpr uint8_t kGuardByte = 0xA5;

/// Memory of an exact size between guards, aligned like a tensor's.
class Guarded {
 public:
  explicit Guarded(int64_t size) : bytes_(static_cast<size_t>(size) + 3 * kGuard, kGuardByte) {}

  uint8_t* data() { return bytes_.data() + begin(); }
  std::vector<uint8_t> content() const {
    const auto size = static_cast<std::ptrdiff_t>(bytes_.size() - 3 * kGuard);
    const auto first = bytes_.begin() + static_cast<std::ptrdiff_t>(begin());
    EXPECT_TRUE(std::all_of(bytes_.begin(), first, [](uint8_t byte) { return byte == kGuardByte; }))
        << "written before the beginning";
    EXPECT_TRUE(std::all_of(first + size, bytes_.end(), [](uint8_t byte) { return byte == kGuardByte; }))
        << "written beyond the end";
    return {first, first + size};
  }

 private:
  size_t begin() const { return 2 * kGuard - reinterpret_cast<uintptr_t>(bytes_.data()) % kGuard; }

  std::vector<uint8_t> bytes_;
};

struct Packed {
  std::vector<uint8_t> parameters;
  std::vector<uint8_t> codes;
  bool operator==(const Packed&) const = default;
};

Packed quantize(const Case& c, const std::vector<uint8_t>& elements, int64_t split = 1) {
  Guarded parameters(c.layout.groups() * 4);
  Guarded codes(c.layout.plane_bytes() * c.layout.bits);
  const QuantizeColumns matrix{.elements = elements.data(),
                               .type = c.type,
                               .layout = c.layout,
                               .parameters = parameters.data(),
                               .codes = codes.data(),
                               .random = c.random,
                               .rounding = c.rounding};
  // In two parts, the second first: pieces are independent.
  const int64_t pieces = column_pieces(c.layout);
  quantize_columns(matrix, std::min(split, pieces), pieces);
  quantize_columns(matrix, 0, std::min(split, pieces));
  return {parameters.content(), codes.content()};
}

std::vector<uint8_t> dequantize(const Case& c, const Packed& packed, int64_t split = 1) {
  Guarded elements(c.layout.rows * c.layout.channels * element_size(c.type));
  const DequantizeColumns matrix{.header = PackedHeader::of(c.random, c.rounding),
                                 .parameters = packed.parameters.data(),
                                 .codes = packed.codes.data(),
                                 .layout = c.layout,
                                 .type = c.type,
                                 .elements = elements.data()};
  const int64_t pieces = column_pieces(c.layout);
  dequantize_columns(matrix, std::min(split, pieces), pieces);
  dequantize_columns(matrix, 0, std::min(split, pieces));
  return elements.content();
}

std::vector<float> as_floats(const std::vector<uint8_t>& elements, ElementType type) {
  std::vector<float> values;
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    for (size_t i = 0; i < elements.size(); i += sizeof(Element)) {
      Element element;
      std::memcpy(&element, elements.data() + i, sizeof element);
      values.push_back(to_float(element));
    }
  });
  return values;
}

float step_of(const Packed& packed, int64_t group) {
  GroupParameters parameters;
  std::memcpy(&parameters, packed.parameters.data() + group * 4, sizeof parameters);
  return step_to_float(parameters.step);
}

/// The steps of the groups that elements are in, row-major.
std::vector<float> steps_of(const Case& c, const Packed& packed) {
  std::vector<float> steps;
  for (int64_t row = 0; row < c.layout.rows; ++row) {
    for (int64_t channel = 0; channel < c.layout.channels; ++channel) {
      steps.push_back(step_of(packed, row / c.layout.group_rows * c.layout.channels + channel));
    }
  }
  return steps;
}

void expect_all_targets_alike(const Case& c, const std::vector<uint8_t>& elements) {
  select_target("reference");
  const Packed expected = quantize(c, elements);
  const std::vector<uint8_t> expected_elements = dequantize(c, expected);
  for_targets([&](const std::string& target) {
    ASSERT_EQ(quantize(c, elements, 2), expected) << target << ", " << text_of(c);
    ASSERT_EQ(dequantize(c, expected, 2), expected_elements) << target << ", " << text_of(c);
  });
}

class ColumnTargets : public testing::TestWithParam<std::tuple<ElementType, int>> {};
INSTANTIATE_TEST_SUITE_P(All, ColumnTargets, testing::Combine(testing::ValuesIn(kElementTypes), testing::Range(1, 9)));

TEST_P(ColumnTargets, GiveTheSameBytesAndValues) {
  const auto [type, bits] = GetParam();
  unsigned seed = 0;
  for (const int64_t rows : {1, 5, 31, 32, 33, 64, 255, 256, 257, 700}) {
    for (const int64_t channels : {1, 2, 3, 7, 8, 15, 16, 17, 64, 100, 128}) {
      // Not every combination: each number of rows meets each size of groups and rounding.
      const int64_t group_rows = int64_t{64} << (++seed % 3);
      const auto rounding = static_cast<Rounding>(seed / 3 % 3);
      const Case c{type, {.rows = rows, .channels = channels, .group_rows = group_rows, .bits = bits}, rounding};
      expect_all_targets_alike(c, as_elements(random_values(rows * channels, seed, seed % 2 == 0), type));
      if (HasFatalFailure()) {
        return;
      }
    }
  }
}

TEST_P(ColumnTargets, GiveTheSameBytesForHugeAndTinyGroups) {
  const auto [type, bits] = GetParam();
  for (const float scale : {1e-44F, 1e-38F, 3e-5F, 1e4F, 1e38F}) {
    const Case c{type, {.rows = 70, .channels = 33, .group_rows = 64, .bits = bits}};
    std::vector<float> values = random_values(70 * 33, 9, false);
    for (float& value : values) {
      value *= scale;
    }
    expect_all_targets_alike(c, as_elements(values, type));
  }
}

TEST_P(ColumnTargets, ChooseTheSameGrids) {
  const auto [type, bits] = GetParam();
  const Case c{type, {.rows = 128, .channels = 301, .group_rows = 64, .bits = bits}};
  std::mt19937 random(32);
  std::vector<float> values;
  for (int64_t i = 0; i < 128 * 301; ++i) {
    values.push_back(i < 2 * 301 ? any_finite(random) : values[i - 2 * 301]);
  }
  expect_all_targets_alike(c, as_elements(values, type));
}

TEST_P(ColumnTargets, GiveTheSameBytesForConstantChannels) {
  const auto [type, bits] = GetParam();
  const Case c{type, {.rows = 40, .channels = 37, .group_rows = 64, .bits = bits}};
  std::vector<float> values;
  for (int i = 0; i < 40 * 37; ++i) {
    const int channel = i % 37;
    values.push_back(channel == 0 ? (i % 2 == 0 ? 0.0F : -0.0F) : static_cast<float>(channel - 20) / 7.0F);
  }
  expect_all_targets_alike(c, as_elements(values, type));
}

/// A counter whose lower half is carried over takes 2^32 blocks: only the noise's own words have to agree.
TEST(Columns, OffsetsBeyondThirtyTwoBitsCount) {
  Case c{ElementType::kFloat32, {.rows = 64, .channels = 40, .group_rows = 64, .bits = 3}};
  const std::vector<uint8_t> elements = as_elements(random_values(64 * 40, 3, false), c.type);
  const Packed before = quantize(c, elements);
  c.random.offset += uint64_t{1} << 32;
  EXPECT_NE(quantize(c, elements).codes, before.codes);
  expect_all_targets_alike(c, elements);
}

/// Large results are written around the cache if they lie well.
TEST(Columns, LargeMatricesDecodeAlike) {
  for (const ElementType type : kElementTypes) {
    for (const auto& [rows, channels] : {std::pair<int64_t, int64_t>{5000, 512}, {25000, 96}}) {
      const Case c{type, {.rows = rows, .channels = channels, .bits = 4}};
      expect_all_targets_alike(c, as_elements(random_values(rows * channels, 11, true), type));
    }
  }
}

class ColumnRounding : public testing::TestWithParam<std::tuple<ElementType, int>> {};
INSTANTIATE_TEST_SUITE_P(All, ColumnRounding, testing::Combine(testing::ValuesIn(kElementTypes), testing::Range(1, 9)));

TEST_P(ColumnRounding, ErrorsStayWithinTheirBounds) {
  const auto [type, bits] = GetParam();
  for (const auto& [rounding, bound] : {std::pair{Rounding::kDithered, 0.5F}, std::pair{Rounding::kStochastic, 1.0F},
                                        std::pair{Rounding::kNearest, 0.5F}}) {
    const Case c{type, {.rows = 300, .channels = 19, .group_rows = 128, .bits = bits}, rounding};
    const std::vector<uint8_t> elements = as_elements(random_values(300 * 19, 5, false), type);
    const Packed packed = quantize(c, elements);
    const std::vector<float> before = as_floats(elements, type);
    const std::vector<float> after = as_floats(dequantize(c, packed), type);
    const std::vector<float> steps = steps_of(c, packed);
    // Positions are rounded to 1/256 of a step, and values to the element type.
    const float precision = type == ElementType::kFloat32 ? 1e-6F : type == ElementType::kFloat16 ? 0x1p-11F : 0x1p-8F;
    for (size_t i = 0; i < before.size(); ++i) {
      const float limit = (bound + 0.004F) * steps[i] + (std::abs(after[i]) + 0.01F) * precision;
      ASSERT_LE(std::abs(after[i] - before[i]), limit)
          << "element " << i << ", rounding " << static_cast<int>(rounding);
    }
  }
}

TEST(Columns, DecodedValuesAreUnbiased) {
  constexpr int kDraws = 2000;
  for (const Rounding rounding : {Rounding::kDithered, Rounding::kStochastic}) {
    Case c{ElementType::kFloat32, {.rows = 64, .channels = 5, .group_rows = 64, .bits = 2}, rounding};
    const std::vector<float> values = random_values(64 * 5, 6, false);
    const std::vector<uint8_t> elements = as_elements(values, c.type);
    std::vector<double> mean(values.size());
    std::vector<float> steps;
    for (int draw = 0; draw < kDraws; ++draw) {
      c.random.offset = static_cast<uint64_t>(draw);
      const Packed packed = quantize(c, elements);
      steps = steps_of(c, packed);
      const std::vector<float> decoded = as_floats(dequantize(c, packed), c.type);
      for (size_t i = 0; i < decoded.size(); ++i) {
        mean[i] += decoded[i] / static_cast<double>(kDraws);
      }
    }
    const double variance = rounding == Rounding::kDithered ? 1.0 / 12 : 1.0 / 4;  // at most, in steps
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_NEAR(mean[i], values[i], steps[i] * (5 * std::sqrt(variance / kDraws) + 1.0 / 512)) << "element " << i;
    }
  }
}

TEST(Columns, AnOutlierChannelCostsOnlyItself) {
  const Case c{ElementType::kFloat32, {.rows = 256, .channels = 24, .bits = 4}};
  std::vector<float> values = random_values(256 * 24, 8, false);
  const Packed before = quantize(c, as_elements(values, c.type));
  for (size_t row = 0; row < 256; ++row) {
    values[row * 24 + 7] *= 1000.0F;
  }
  const Packed after = quantize(c, as_elements(values, c.type));
  for (int64_t channel = 0; channel < 24; ++channel) {
    const int64_t begin = c.layout.group_offset(0, channel, 4);
    const bool same =
        std::equal(after.codes.begin() + begin, after.codes.begin() + begin + 32 * 4, before.codes.begin() + begin) &&
        step_of(after, channel) == step_of(before, channel);
    EXPECT_EQ(same, channel != 7) << "channel " << channel;
  }
}

TEST(Columns, ANonFiniteElementMakesItsColumnOfABlockNanAtMost) {
  for (const int bits : {1, 3, 8}) {
    const Case c{ElementType::kBFloat16, {.rows = 130, .channels = 20, .group_rows = 64, .bits = bits}};
    std::vector<float> values = random_values(130 * 20, 12, false);
    values[70 * 20 + 3] = float_of(kInfinityFloat32);
    const std::vector<float> decoded = as_floats(dequantize(c, quantize(c, as_elements(values, c.type))), c.type);
    for (size_t i = 0; i < decoded.size(); ++i) {
      const bool in_group = i % 20 == 3 && i / 20 >= 64 && i / 20 < 128;
      const bool is_lost = i == 70 * 20 + 3 || (bits == 1 && in_group);  // 1 bit has no code left for it
      EXPECT_EQ(is_nan(decoded[i]), is_lost) << "element " << i << ", " << bits << " bits";
    }
  }
}

TEST(Columns, NearestRoundingDoesNotDependOnTheState) {
  Case c{ElementType::kFloat32, {.rows = 40, .channels = 9, .group_rows = 64, .bits = 5}, Rounding::kNearest};
  const std::vector<uint8_t> elements = as_elements(random_values(40 * 9, 2, false), c.type);
  const Packed packed = quantize(c, elements);
  c.random = {1, 2};
  EXPECT_EQ(quantize(c, elements), packed);
}

/// By hand: minimum 0 and step 1, so that codes are values; 4 bits, 9 rows of 2 channels.
TEST(Columns, CodesOfAChannelAreContiguous) {
  const Case c{ElementType::kFloat32, {.rows = 9, .channels = 2, .group_rows = 64, .bits = 4}, Rounding::kNearest};
  const std::vector<float> values = {0, 15, 1, 14, 2, 13, 3, 12, 4, 11, 5, 10, 6, 9, 7, 8, 15, 0};
  const Packed packed = quantize(c, as_elements(values, c.type));
  EXPECT_EQ(packed.parameters, (std::vector<uint8_t>{0, 0, 0x80, 0x3F, 0, 0, 0x80, 0x3F}));
  EXPECT_EQ(packed.codes,
            (std::vector<uint8_t>{0x10, 0x32, 0x54, 0x76, 0x0F, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,     // channel 0
                                  0xEF, 0xCD, 0xAB, 0x89, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}));  // channel 1
}

}  // namespace
}  // namespace actnn::cpu
