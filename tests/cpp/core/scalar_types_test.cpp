#include "actnn/core/scalar_types.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace actnn {
namespace {

TEST(Float16, ConvertsExactlyInBothDirections) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 half{static_cast<uint16_t>(bits)};
    const float value = to_float(half);
    if ((bits & 0x7FFF) > 0x7C00) {
      EXPECT_TRUE(is_nan(value));
      EXPECT_EQ(round_to_float16(value).bits, kNanFloat16);
    } else {
      EXPECT_EQ(round_to_float16(value).bits, bits);
      const double exponent = (bits >> 10) & 31;
      const double mantissa = bits & 1023;
      double expected =
          exponent == 0 ? mantissa * 0x1p-24 : std::ldexp(1024 + mantissa, static_cast<int>(exponent) - 25);
      expected = exponent == 31 ? INFINITY : expected;
      EXPECT_EQ(value, static_cast<float>((bits & 0x8000) != 0 ? -expected : expected));
    }
  }
}

/// Rounds by definition: the nearest of the two neighbours, ties to the even one.
uint16_t nearest_float16(float x) {
  const uint16_t down = round_parameter_down(x, ElementType::kFloat16);
  const uint16_t up = round_parameter_up(x, ElementType::kFloat16);
  const double below = static_cast<double>(x) - to_float(Float16{down});
  const double above = to_float(Float16{up}) - static_cast<double>(x);
  return below < above ? down : above < below ? up : (down & 1) == 0 ? down : up;
}

TEST(Float16, RoundsToNearestEven) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> exponent(-30.0F, 15.9F);
  for (int i = 0; i < 100000; ++i) {
    const float x = std::ldexp(static_cast<float>(random()) * 0x1p-31F - 1.0F, static_cast<int>(exponent(random)));
    EXPECT_EQ(to_float(round_to_float16(x)), to_float(Float16{nearest_float16(x)})) << x;
  }
  EXPECT_EQ(round_to_float16(65519.0F).bits, 0x7BFF);
  EXPECT_EQ(round_to_float16(65520.0F).bits, 0x7C00);
  EXPECT_EQ(round_to_float16(-INFINITY).bits, 0xFC00);
  EXPECT_EQ(round_to_float16(0x1p-25F).bits, 0x0000);
  EXPECT_EQ(round_to_float16(0x1.8p-24F).bits, 0x0002);
}

TEST(BFloat16, RoundsToNearestEven) {
  EXPECT_EQ(round_to_bfloat16(float_of(0x3F808000)).bits, 0x3F80);  // tie, even below
  EXPECT_EQ(round_to_bfloat16(float_of(0x3F818000)).bits, 0x3F82);  // tie, even above
  EXPECT_EQ(round_to_bfloat16(float_of(0x3F808001)).bits, 0x3F81);
  EXPECT_EQ(round_to_bfloat16(float_of(0x7F7FFFFF)).bits, 0x7F80);
  EXPECT_EQ(round_to_bfloat16(float_of(0x00000001)).bits, 0x0000);
  EXPECT_EQ(round_to_bfloat16(float_of(0x7F800001)).bits, kNanBFloat16);
}

class Outward : public testing::TestWithParam<ElementType> {};
INSTANTIATE_TEST_SUITE_P(Types, Outward, testing::Values(ElementType::kFloat16, ElementType::kBFloat16));

TEST_P(Outward, BracketsEveryNumberByNeighbours) {
  const ElementType type = GetParam();
  std::mt19937 random(4);
  for (int i = 0; i < 200000; ++i) {
    float x = float_of(random());
    if (type == ElementType::kFloat16) {
      x = std::ldexp(static_cast<float>(random()) * 0x1p-31F - 1.0F, static_cast<int>(random() % 46) - 30);
    }
    if (!is_finite(x)) {
      continue;
    }
    const float down = parameter_to_float(round_parameter_down(x, type), type);
    const float up = parameter_to_float(round_parameter_up(x, type), type);
    EXPECT_LE(down, x);
    EXPECT_GE(up, x);
    if (down == x || up == x) {
      EXPECT_EQ(down, up);
    } else {
      const uint16_t next = detail::next_up(round_parameter_down(x, type));
      EXPECT_EQ(parameter_to_float(next, type), up);
    }
  }
}

}  // namespace
}  // namespace actnn
