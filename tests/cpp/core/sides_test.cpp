#include "actnn/core/sides.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace actnn {
namespace {

constexpr int kMostSideBits = 7;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

SideRange range_of(const std::vector<float>& elements) {
  SideRange range;
  for (const float s : elements) {
    range.add(s);
  }
  return range;
}

double copy_of(float s, SideSteps steps, uint32_t noise, int bits, bool dithered) {
  const uint32_t code = SideEncoder(steps).encode(s, s > 0.0F, noise, bits);
  EXPECT_LE(code, highest_code(bits));
  return SideDecoder(steps, dithered).value(s > 0.0F, dithered ? dithered_code(code, noise) : undithered_code(code));
}

/// Elements of many sizes, those farthest from 0 among them.
const std::vector<float> kElements = {1.0F, 0.77F, 0.5F, 0.123F, 1e-4F, 0.0F, -0.0F, -1e-3F, -0.2F, -1.0F / 3, -0.4F};

TEST(SideRange, IsThatOfTheFiniteElements) {
  const SideRange range = range_of({0.5F, -2.0F, kInfinity, kNaN, 1.5F, -1.0F});
  EXPECT_EQ(range.above, 1.5F);
  EXPECT_EQ(range.below, 2.0F);
  EXPECT_FALSE(range.all_finite);
  EXPECT_TRUE(range_of({0.5F, -0.5F}).all_finite);
  EXPECT_EQ(range_of({-1.0F, -0.0F}).above, 0.0F);
}

TEST(SideSteps, ReachTheFarthestElements) {
  std::mt19937 random(5);
  std::uniform_int_distribution<uint32_t> magnitude(1, 0x7E000000u);
  for (int i = 0; i < 20000; ++i) {
    const float above = float_of(magnitude(random));
    const float below = float_of(magnitude(random));
    for (const bool all_finite : {true, false}) {
      for (int bits = all_finite ? 1 : 2; bits <= kMostSideBits; ++bits) {
        const auto levels = static_cast<float>(highest_code(bits) - (all_finite ? 0 : 1));
        const SideSteps steps = choose_sides({above, below, all_finite}, bits);
        EXPECT_GE(step_to_float(steps.above) * levels, above);
        EXPECT_GE(step_to_float(steps.below) * levels, below);
        EXPECT_EQ((steps.below & kHasNanCode) != 0, !all_finite);
        // A step is rounded up twice to 8 bits.
        EXPECT_LE(step_to_float(steps.above), std::max(above / levels * (1 + 0x1p-6F), 0x1p-110F));
      }
    }
  }
}

TEST(SideSteps, AreZeroOnASideWithoutDistances) {
  const SideSteps steps = choose_sides(range_of({1.0F, 0.0F, -0.0F}), 3);
  EXPECT_NE(steps.above, 0);
  EXPECT_EQ(steps.below, 0);
  for (const uint32_t noise : {0u, 128u, 255u}) {
    EXPECT_EQ(copy_of(0.0F, steps, noise, 3, true), 0.0);
    EXPECT_EQ(copy_of(-0.0F, steps, noise, 3, true), 0.0);
  }
}

TEST(SideSteps, OfGroupsThatCannotBeRepresentedAreNan) {
  // 1 bit has no code for what is not finite; a product of the decoder must not overflow.
  for (const SideSteps steps : {choose_sides({1.0F, 1.0F, false}, 1), choose_sides({3.3e38F, 1.0F, true}, 3),
                                choose_sides({1.0F, 3.3e38F, true}, 3)}) {
    EXPECT_EQ(steps.above, kNanBFloat16);
    EXPECT_EQ(steps.below, 0);
    for (const bool side : {true, false}) {
      EXPECT_TRUE(is_nan(SideDecoder(steps, true).value(side, 0)));
      EXPECT_TRUE(is_nan(SideDecoder(steps, false).value(side, 0)));
    }
  }
}

class SideCopies : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(All, SideCopies, testing::Range(1, kMostSideBits + 1));

/// Over all noises. The encoder's position is rounded to 1/256 of a step.
TEST_P(SideCopies, AreUnbiasedGivenTheSide) {
  const int bits = GetParam();
  const SideSteps steps = choose_sides(range_of(kElements), bits);
  for (const float s : kElements) {
    const double step = step_to_float(s > 0.0F ? steps.above : steps.below);
    for (const bool dithered : {true, false}) {
      double sum = 0;
      for (uint32_t noise = 0; noise < kNoises; ++noise) {
        const double copy = copy_of(s, steps, noise, bits, dithered);
        sum += copy;
        EXPECT_LE(std::abs(copy - s), step * (dithered ? 0.5 + 1.0 / 256 : 1.0 + 1.0 / 256));
      }
      EXPECT_NEAR(sum / kNoises, s, step * (1.0 / 512 + 1e-6)) << "dithered " << dithered;
    }
  }
}

TEST_P(SideCopies, OfLeakyReluAreUnbiased) {
  const int bits = GetParam();
  constexpr double kSlope = 0.25;
  const SideSteps steps = choose_sides(range_of(kElements), bits);
  for (const float s : kElements) {
    double sum = 0;
    for (uint32_t noise = 0; noise < kNoises; ++noise) {
      const double copy = copy_of(s, steps, noise, bits, true);
      sum += s > 0.0F ? copy : kSlope * copy;
    }
    const double step = step_to_float(s > 0.0F ? steps.above : steps.below);
    EXPECT_NEAR(sum / kNoises, s > 0.0F ? s : kSlope * s, step * (1.0 / 512 + 1e-6));
  }
}

/// Every product and sum of the decoder is exact: fused or not makes no difference.
TEST_P(SideCopies, AreExactMultiples) {
  const int bits = GetParam();
  for (const uint16_t step : {uint16_t{0x3F80}, uint16_t{0x3FFF}, uint16_t{0x0881}, uint16_t{0x7A7F}}) {
    const double exact_step = step_to_float(step);
    for (const bool dithered : {true, false}) {
      const SideDecoder decoder({step, step}, dithered);
      for (uint32_t n = 0; n <= (highest_code(bits) << kNoiseBits | (kNoises - 1)); ++n) {
        const double distance = (n / 256.0 - (dithered ? 127.5 / 256 : 0.0)) * exact_step;
        ASSERT_EQ(decoder.value(true, n), distance) << n;
        ASSERT_EQ(decoder.value(false, n), -distance) << n;
      }
    }
  }
}

TEST(SideEncoder, CountsAnElementOnTheWrongSideAsZero) {
  const SideSteps steps = choose_sides(range_of({1.0F, -1.0F}), 3);
  EXPECT_EQ(SideEncoder(steps).encode(-0.5F, true, 0, 3), 0u);
  EXPECT_EQ(SideEncoder(steps).encode(0.5F, false, 0, 3), 0u);
}

}  // namespace
}  // namespace actnn
