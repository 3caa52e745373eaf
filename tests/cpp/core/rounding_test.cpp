#include "actnn/core/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace actnn {
namespace {

constexpr ElementType kTypes[] = {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16};

float as_element(float x, ElementType type) {
  return type == ElementType::kFloat32   ? x
         : type == ElementType::kFloat16 ? to_float(round_to_float16(x))
                                         : to_float(round_to_bfloat16(x));
}

/// Random pairs smallest < largest of the type, from huge to subnormal, near and far from zero.
template <class Body>
void for_ranges(ElementType type, int count, Body&& body) {
  std::mt19937 random(7);
  const int lowest = type == ElementType::kFloat16 ? -24 : -149;
  const int highest = type == ElementType::kFloat16 ? 14 : 125;
  std::uniform_int_distribution<int> exponent(lowest, highest);
  std::uniform_real_distribution<float> mantissa(-1.0F, 1.0F);
  for (int i = 0; i < count; ++i) {
    const float a = as_element(std::ldexp(mantissa(random), exponent(random)), type);
    const float width = std::ldexp(std::abs(mantissa(random)), exponent(random));
    const float b = as_element(a + width, type);
    if (a != b && is_finite(b)) {
      body(std::min(a, b), std::max(a, b));
    }
  }
}

TEST(Grid, CoversTheGroup) {
  for (const ElementType type : kTypes) {
    for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
      for_ranges(type, 5000, [&](float smallest, float largest) {
        const GroupParameters parameters = choose_grid(smallest, largest, true, bits, type);
        const double minimum = parameter_to_float(parameters.minimum, type);
        const double step = parameter_to_float(parameters.step, type);
        if (std::isnan(minimum)) {
          return;
        }
        EXPECT_LE(minimum, smallest);
        EXPECT_GT(step, 0.0);
        // To float precision: the range that the encoder sees is the rounded difference.
        const double end = minimum + step * highest_code(bits);
        EXPECT_GE(end, largest - std::abs(largest - minimum) * 0x1p-24);
      });
    }
  }
}

TEST(Grid, StepIsTheSmallestThatReaches) {
  std::mt19937 random(11);
  for (const ElementType type : kTypes) {
    for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
      const auto levels = static_cast<float>(highest_code(bits));
      const auto check = [&](float range) {
        const uint16_t step = smallest_step(range, levels, type);
        ASSERT_GE(parameter_to_float(step, type) * levels, range);
        if (step != 1 && step != kSmallestBFloat16Step) {
          ASSERT_LT(parameter_to_float(step - 1, type) * levels, range) << "range " << range << " bits " << bits;
        }
      };
      // Ranges of any size, and those at and beside exact multiples of a step, where rounding decides.
      std::uniform_int_distribution<uint32_t> magnitude(1, type == ElementType::kFloat16 ? 0x477FE000u : 0x7F000000u);
      std::uniform_int_distribution<uint32_t> parameter(1, type == ElementType::kFloat16 ? 0x5BFFu : 0x7AFFu);
      for (int i = 0; i < 20000; ++i) {
        check(float_of(magnitude(random)));
        const float exact = parameter_to_float(static_cast<uint16_t>(parameter(random)), type) * levels;
        check(exact);
        check(float_of(bits_of(exact) + 1));
        check(float_of(bits_of(exact) - 1));
      }
    }
  }
}

TEST(Grid, IsNoWiderThanRoundingRequires) {
  for_ranges(ElementType::kFloat32, 20000, [](float smallest, float largest) {
    const GroupParameters parameters = choose_grid(smallest, largest, true, 4, ElementType::kFloat32);
    const double minimum = parameter_to_float(parameters.minimum, ElementType::kFloat32);
    const double step = parameter_to_float(parameters.step, ElementType::kFloat32);
    if (!std::isnan(minimum)) {
      EXPECT_LE(smallest - minimum, std::abs(smallest) * 0x1p-7 + 0x1p-133);
      EXPECT_LE(step, (largest - minimum) / 15 * (1 + 0x1p-6) + 0x1p-110);
    }
  });
}

// The claim behind the missing clamp: with the largest noise the largest element gets the highest code, not one more,
// and with none the smallest gets at least 0.
TEST(Encode, NeedsNoClamp) {
  for (const ElementType type : kTypes) {
    for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
      for_ranges(type, 20000, [&](float smallest, float largest) {
        const GroupParameters parameters = choose_grid(smallest, largest, true, bits, type);
        const EncodingGrid grid = encoding_grid(parameters, bits, type);
        if (is_nan(grid.minimum)) {
          return;
        }
        const float scaled = (largest - grid.minimum) * grid.inverse_step + kIntegerInMantissa;
        const uint32_t fixed = bits_of(scaled) - bits_of(kIntegerInMantissa);
        EXPECT_LE(fixed, highest_code(bits) << fraction_bits(bits));
        EXPECT_GE((smallest - grid.minimum) * grid.inverse_step, 0.0F);
        const uint32_t most_noise = (1u << fraction_bits(bits)) - 1;
        EXPECT_LE(encode(largest, grid, most_noise, bits), highest_code(bits));
        EXPECT_GE(encode(largest, grid, most_noise, bits), encode(smallest, grid, 0, bits));
      });
    }
  }
}

// Summed over all 2^16 noise values the codes average to the scaled element: unbiased by counting, not by sampling.
TEST(Encode, IsUnbiasedOverAllNoise) {
  for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
    const GroupParameters parameters = choose_grid(-0.7F, 1.9F, true, bits, ElementType::kFloat32);
    const EncodingGrid grid = encoding_grid(parameters, bits, ElementType::kFloat32);
    const double step = parameter_to_float(parameters.step, ElementType::kFloat32);
    const uint32_t noises = 1u << fraction_bits(bits);
    for (const float x : {-0.7F, -0.1F, 0.0F, 0.3333F, 1.0F, 1.9F}) {
      double sum = 0.0;
      for (uint32_t noise = 0; noise < noises; ++noise) {
        sum += encode(x, grid, noise, bits);
      }
      EXPECT_NEAR(grid.minimum + step * sum / noises, x, step / noises + 1e-6);
    }
  }
}

TEST(Encode, RoundsToNearestWithHalfAStep) {
  const GroupParameters parameters = choose_grid(0.0F, 3.0F, true, 2, ElementType::kFloat32);
  const EncodingGrid grid = encoding_grid(parameters, 2, ElementType::kFloat32);
  EXPECT_EQ(encode(0.49F, grid, half_step(2), 2), 0u);
  EXPECT_EQ(encode(0.51F, grid, half_step(2), 2), 1u);
  EXPECT_EQ(encode(2.6F, grid, half_step(2), 2), 3u);
}

TEST(Grid, KeepsConstantGroups) {
  const GroupParameters parameters = choose_grid(0.1F, 0.1F, true, 3, ElementType::kFloat32);
  EXPECT_EQ(parameters.step, 0);
  EXPECT_EQ(parameters.minimum, round_to_bfloat16(0.1F).bits);
  const EncodingGrid grid = encoding_grid(parameters, 3, ElementType::kFloat32);
  EXPECT_EQ(encode(0.1F, grid, 0xFFFF, 3), 0u);
}

TEST(Grid, DoesNotDependOnTheSignOfZero) {
  for (const ElementType type : kTypes) {
    EXPECT_EQ(choose_grid(-0.0F, 0.0F, true, 2, type).minimum, 0);
    EXPECT_EQ(choose_grid(-0.0F, 1.0F, true, 2, type).minimum, 0);
  }
}

TEST(Grid, MarksWhatItCannotRepresent) {
  const float largest = std::numeric_limits<float>::max();
  EXPECT_EQ(choose_grid(0.0F, 1.0F, false, 2, ElementType::kFloat32).minimum, kNanBFloat16);
  EXPECT_EQ(choose_grid(-largest, largest, true, 2, ElementType::kFloat32).minimum, kNanBFloat16);
  EXPECT_EQ(choose_grid(largest, largest, true, 2, ElementType::kFloat32).minimum, kNanBFloat16);
  EXPECT_EQ(choose_grid(0.0F, 65504.0F, true, 2, ElementType::kFloat16).minimum, kNanFloat16);
}

}  // namespace
}  // namespace actnn
