#include "actnn/core/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

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

GroupRange range_between(float smallest, float largest, bool all_finite = true) {
  return {smallest, largest, all_finite};
}

/// The highest code of finite elements.
uint32_t highest_finite_code(int bits, bool all_finite) { return highest_code(bits) - (all_finite ? 0 : 1); }

TEST(Grid, CoversTheGroup) {
  for (const ElementType type : kTypes) {
    for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
      for (const bool all_finite : {true, false}) {
        for_ranges(type, 3000, [&](float smallest, float largest) {
          const GroupParameters parameters = choose_grid(range_between(smallest, largest, all_finite), bits, type);
          const double minimum = parameter_to_float(parameters.minimum, type);
          const double step = step_to_float(parameters.step);
          if (std::isnan(minimum)) {
            return;
          }
          EXPECT_LE(minimum, smallest);
          EXPECT_GT(step, 0.0);
          EXPECT_EQ((parameters.step & kHasNanCode) != 0, !all_finite);
          // To float precision: the range that the encoder sees is the rounded difference.
          const double end = minimum + step * highest_finite_code(bits, all_finite);
          EXPECT_GE(end, largest - std::abs(largest - minimum) * 0x1p-24);
        });
      }
    }
  }
}

TEST(Grid, StepIsTheSmallestThatReaches) {
  std::mt19937 random(11);
  std::uniform_int_distribution<uint32_t> magnitude(1, 0x7F000000u);
  std::uniform_int_distribution<uint32_t> step_bits(kSmallestStep, 0x7AFFu);
  for (int highest = 1; highest <= 255; ++highest) {
    const auto levels = static_cast<float>(highest);
    const auto check = [&](float range) {
      const uint16_t step = smallest_step(range, levels);
      ASSERT_GE(step_to_float(step) * levels, range);
      if (step != kSmallestStep) {
        ASSERT_LT(step_to_float(step - 1) * levels, range) << "range " << range << " levels " << levels;
      }
    };
    // Ranges of any size, and those at and beside exact multiples of a step, where rounding decides.
    for (int i = 0; i < 2000; ++i) {
      check(float_of(magnitude(random)));
      const float exact = step_to_float(static_cast<uint16_t>(step_bits(random))) * levels;
      check(exact);
      check(float_of(bits_of(exact) + 1));
      check(float_of(bits_of(exact) - 1));
    }
  }
}

TEST(Grid, IsNoWiderThanRoundingRequires) {
  for_ranges(ElementType::kFloat32, 20000, [](float smallest, float largest) {
    const GroupParameters parameters = choose_grid(range_between(smallest, largest), 4, ElementType::kFloat32);
    const double minimum = parameter_to_float(parameters.minimum, ElementType::kFloat32);
    const double step = step_to_float(parameters.step);
    if (!std::isnan(minimum)) {
      // Both ends are rounded outward to parameters, then the step is rounded up.
      const double end = parameter_to_float(round_parameter_up(largest, ElementType::kFloat32), ElementType::kFloat32);
      EXPECT_LE(smallest - minimum, std::abs(smallest) * 0x1p-7 + 0x1p-133);
      EXPECT_LE(end - largest, std::abs(largest) * 0x1p-7 + 0x1p-133);
      EXPECT_LE(step, (end - minimum) / 15 * (1 + 0x1p-6) + 0x1p-110);
    }
  });
}

TEST(Grid, KeepsGroupsOfOneParameterValue) {
  const float x = to_float(round_to_bfloat16(0.1F));
  const GroupParameters parameters = choose_grid(range_between(x, x), 3, ElementType::kFloat32);
  EXPECT_EQ(parameters.step, 0);
  EXPECT_EQ(parameters.minimum, round_to_bfloat16(0.1F).bits);
  const EncodingGrid grid = encoding_grid(parameters, ElementType::kFloat32);
  EXPECT_EQ(encode(x, grid, kNoises - 1, 3), 0u);
  EXPECT_EQ(DecodingGrid(parameters, ElementType::kFloat32, true).value(dithered_code(0, 17)), grid.minimum);
}

TEST(Grid, DoesNotDependOnTheSignOfZero) {
  for (const ElementType type : kTypes) {
    EXPECT_EQ(choose_grid(range_between(-0.0F, 0.0F), 2, type).minimum, 0);
    EXPECT_EQ(choose_grid(range_between(-0.0F, 1.0F), 2, type).minimum, 0);
  }
}

TEST(Grid, MarksWhatItCannotRepresent) {
  const float largest = std::numeric_limits<float>::max();
  EXPECT_EQ(choose_grid(range_between(-largest, largest), 2, ElementType::kFloat32).minimum, kNanBFloat16);
  EXPECT_EQ(choose_grid(range_between(largest, largest), 2, ElementType::kFloat32).minimum, kNanBFloat16);
  EXPECT_EQ(choose_grid(range_between(0.0F, 65504.0F), 2, ElementType::kFloat16).minimum, kNanFloat16);
  // Half a step beyond the end.
  EXPECT_EQ(choose_grid(range_between(0.0F, 60000.0F), 2, ElementType::kFloat16).minimum, kNanFloat16);
  EXPECT_NE(choose_grid(range_between(0.0F, 60000.0F), 8, ElementType::kFloat16).minimum, kNanFloat16);
}

TEST(Grid, ValuesAreFiniteInTheElementType) {
  for (const ElementType type : kTypes) {
    for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
      for_ranges(type, 5000, [&](float smallest, float largest) {
        const GroupParameters parameters = choose_grid(range_between(smallest, largest), bits, type);
        const DecodingGrid grid(parameters, type, true);
        if (!is_nan(grid.start)) {
          EXPECT_TRUE(is_finite(as_element(grid.value(dithered_code(0, kNoises - 1)), type)));
          EXPECT_TRUE(is_finite(as_element(grid.value(dithered_code(highest_code(bits), 0)), type)));
        }
      });
    }
  }
}

TEST(GroupRange, LeavesOutWhatIsNotFinite) {
  GroupRange range;
  for (const float x : {1.0F, float_of(kInfinityFloat32), -2.0F, float_of(kNanFloat32), -float_of(kInfinityFloat32)}) {
    range.add(x);
  }
  EXPECT_EQ(range.smallest, -2.0F);
  EXPECT_EQ(range.largest, 1.0F);
  EXPECT_FALSE(range.all_finite);
}

TEST(NanCode, IsAboveTheCodesOfFiniteElements) {
  for (const ElementType type : kTypes) {
    for (int bits = 2; bits <= kMaxBits; ++bits) {
      for_ranges(type, 5000, [&](float smallest, float largest) {
        const GroupParameters parameters = choose_grid(range_between(smallest, largest, false), bits, type);
        const EncodingGrid grid = encoding_grid(parameters, type);
        if (!is_nan(grid.minimum)) {
          EXPECT_LT(encode(largest, grid, kNoises - 1, bits), highest_code(bits));
        }
      });
    }
  }
}

TEST(NanCode, OfAConstantGroup) {
  const GroupParameters parameters = choose_grid(range_between(2.0F, 2.0F, false), 2, ElementType::kFloat32);
  EXPECT_EQ(parameters.step, kHasNanCode);
  EXPECT_EQ(encode(2.0F, encoding_grid(parameters, ElementType::kFloat32), kNoises - 1, 2), 0u);
  EXPECT_EQ(DecodingGrid(parameters, ElementType::kFloat32, true).value(dithered_code(0, 9)), 2.0F);
}

TEST(NanCode, NeedsASecondBitAndAFiniteElement) {
  for (const ElementType type : kTypes) {
    const uint16_t nan = unrepresentable_group(type).minimum;
    EXPECT_EQ(choose_grid(range_between(0.0F, 1.0F, false), 1, type).minimum, nan);
    EXPECT_EQ(choose_grid(GroupRange{.all_finite = false}, 8, type).minimum, nan);
    EXPECT_EQ(choose_grid(GroupRange{.all_finite = false}, 8, type).step, 0);
  }
}

TEST(NoisesPerUnit, IsTheRoundedQuotientOfEveryStep) {
  EXPECT_EQ(noises_per_unit(0.0F), 0.0F);
  for (uint32_t bits = kSmallestStep; bits < kInfinityBFloat16; ++bits) {
    const float step = step_to_float(static_cast<uint16_t>(bits));
    // A quotient of a power of two and 8 bits is not near the middle of two floats: double rounding does no harm.
    ASSERT_EQ(noises_per_unit(step), static_cast<float>(256.0 / step)) << step;
    ASSERT_TRUE(std::isnormal(noises_per_unit(step)));
  }
}

// The claim behind the missing clamp: with the largest noise the largest element gets the highest code, not one more,
// and with none the smallest gets at least 0.
TEST(Encode, NeedsNoClamp) {
  for (const ElementType type : kTypes) {
    for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
      for_ranges(type, 20000, [&](float smallest, float largest) {
        const GroupParameters parameters = choose_grid(range_between(smallest, largest), bits, type);
        const EncodingGrid grid = encoding_grid(parameters, type);
        if (is_nan(grid.minimum)) {
          return;
        }
        EXPECT_LE(position_on_grid(largest, grid) - bits_of(kIntegerInMantissa), highest_code(bits) * kNoises);
        EXPECT_GE((smallest - grid.minimum) * grid.inverse_step, 0.0F);
        EXPECT_LE(encode(largest, grid, kNoises - 1, bits), highest_code(bits));
        EXPECT_GE(encode(largest, grid, kNoises - 1, bits), encode(smallest, grid, 0, bits));
      });
    }
  }
}

TEST(Encode, RoundsToNearestWithHalfAStep) {
  const GroupParameters parameters = choose_grid(range_between(0.0F, 3.0F), 2, ElementType::kFloat32);
  const EncodingGrid grid = encoding_grid(parameters, ElementType::kFloat32);
  EXPECT_EQ(encode(0.49F, grid, kHalfStep, 2), 0u);
  EXPECT_EQ(encode(0.51F, grid, kHalfStep, 2), 1u);
  EXPECT_EQ(encode(2.6F, grid, kHalfStep, 2), 3u);
}

TEST(Decode, IsTheSameFusedAndUnfused) {
  std::mt19937 random(13);
  for (const ElementType type : kTypes) {
    for_ranges(type, 2000, [&](float smallest, float largest) {
      const GroupParameters parameters = choose_grid(range_between(smallest, largest), 8, type);
      for (const bool dithered : {false, true}) {
        const DecodingGrid grid(parameters, type, dithered);
        if (is_nan(grid.start)) {
          return;
        }
        for (const uint32_t n : {uint32_t{0}, uint32_t{0xFFFF}, static_cast<uint32_t>(random() % 0x10000)}) {
          const float unfused = grid.value(n);
          EXPECT_EQ(unfused, std::fma(static_cast<float>(n), grid.scale, grid.start));
        }
      }
    });
  }
}

/// A group on its grid.
struct Group {
  std::vector<float> elements;
  int bits;
  GroupParameters parameters = choose_grid(range(), bits, ElementType::kFloat32);
  EncodingGrid grid = encoding_grid(parameters, ElementType::kFloat32);
  double step = step_to_float(parameters.step);

  GroupRange range() const {
    GroupRange result;
    for (const float x : elements) {
      result.add(x);
    }
    return result;
  }

  /// The error of an element that is rounded with `noise`, in steps.
  double error(float x, uint32_t noise, bool dithered) const {
    const uint32_t code = encode(x, grid, noise, bits);
    const DecodingGrid decoding(parameters, ElementType::kFloat32, dithered);
    return (decoding.value(dithered ? dithered_code(code, noise) : undithered_code(code)) - double{x}) / step;
  }
  /// Where an element lies between two points of its grid, in [0, 1).
  double fraction(float x) const {
    const double position = (double{x} - grid.minimum) / step;
    return position - std::floor(position);
  }
};

/// Sums of errors: all 2^8 noises of each element are counted, none is sampled.
struct Errors {
  double sum = 0.0;
  double squares = 0.0;
  double largest = 0.0;
  int count = 0;

  void add_all_noises(const Group& group, float x, bool dithered) {
    for (uint32_t noise = 0; noise < kNoises; ++noise) {
      const double error = group.error(x, noise, dithered);
      sum += error;
      squares += error * error;
      largest = std::max(largest, std::abs(error));
      ++count;
    }
  }
  double mean() const { return sum / count; }
  double variance() const { return squares / count - mean() * mean(); }
};

/// What the float arithmetic adds to the error of an element, in steps.
constexpr double kFloatError = 1e-4;

std::vector<Group> groups_of_distributions(int bits) {
  std::mt19937 random(17);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(-1.0F, 3.0F);
  std::exponential_distribution<float> skewed;
  const auto group = [&](auto&& distribution) {
    std::vector<float> elements(256);
    for (float& x : elements) {
      x = distribution(random);
    }
    return Group{elements, bits};
  };
  return {group(normal), group(uniform), group(skewed)};
}

class Dither : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Bits, Dither, testing::Range(kMinBits, kMaxBits + 1));

TEST_P(Dither, IsUnbiasedForEveryElement) {
  for (const Group& group : groups_of_distributions(GetParam())) {
    for (const float x : group.elements) {
      for (const bool dithered : {true, false}) {
        Errors errors;
        errors.add_all_noises(group, x, dithered);
        // Positions are rounded to 2^-8 of a step.
        EXPECT_LE(std::abs(errors.mean()), 1.0 / 512 + kFloatError) << x;
      }
    }
  }
}

TEST_P(Dither, ErrorIsAtMostHalfAStep) {
  for (const Group& group : groups_of_distributions(GetParam())) {
    Errors errors;
    for (const float x : group.elements) {
      errors.add_all_noises(group, x, true);
    }
    EXPECT_LE(errors.largest, 0.5 + kFloatError);
  }
}

TEST_P(Dither, VarianceIsATwelfthOfTheSquaredStep) {
  for (const Group& group : groups_of_distributions(GetParam())) {
    Errors errors;
    for (const float x : group.elements) {
      errors.add_all_noises(group, x, true);
    }
    EXPECT_NEAR(12 * errors.variance(), 1.0, 0.02);
  }
}

TEST_P(Dither, ErrorDoesNotDependOnThePlaceBetweenTwoPoints) {
  constexpr size_t kBins = 16;
  for (const Group& group : groups_of_distributions(GetParam())) {
    std::vector<Errors> dithered(kBins);
    for (const float x : group.elements) {
      dithered[static_cast<size_t>(group.fraction(x) * kBins)].add_all_noises(group, x, true);
    }
    // At 1 bit a skewed group has nothing in some bins.
    std::erase_if(dithered, [](const Errors& errors) { return errors.count == 0; });
    EXPECT_GE(dithered.size(), 8u);
    for (const Errors& errors : dithered) {
      EXPECT_NEAR(12 * errors.variance(), 1.0, 0.03);
      EXPECT_LE(std::abs(errors.mean()), 1.0 / 512 + kFloatError);
    }
  }
}

// What dither gains: f (1 - f) of the squared step without the subtraction, a sixth on average.
TEST_P(Dither, VarianceWithoutSubtractionIsThatOfStochasticRounding) {
  for (const Group& group : groups_of_distributions(GetParam())) {
    for (size_t i = 0; i < group.elements.size(); i += 8) {
      Errors errors;
      errors.add_all_noises(group, group.elements[i], false);
      const double fraction = group.fraction(group.elements[i]);
      EXPECT_NEAR(errors.variance(), fraction * (1 - fraction), 0.005);
    }
  }
}

}  // namespace
}  // namespace actnn
