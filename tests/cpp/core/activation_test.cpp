#include "actnn/core/activation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace actnn {
namespace {

using enum ActivationFunction;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

double exact_sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

/// Calls `body(z)` for numbers of all sizes, denser near 0.
template <class Body>
void for_numbers(Body&& body) {
  for (float z = -100.0F; z < 100.0F; z += 0.0137F) {
    body(z);
  }
  for (float z = 1e-30F; z < 1e30F; z *= 1.7F) {
    body(z);
    body(-z);
  }
}

TEST(Sigmoid, IsNearTheExactOne) {
  for (float z = -80.0F; z <= 80.0F; z += 0.00371F) {
    const double exact = exact_sigmoid(z);
    EXPECT_NEAR(sigmoid(z), exact, 3e-7 * exact) << z;
  }
  EXPECT_EQ(sigmoid(0.0F), 0.5F);
  EXPECT_EQ(sigmoid(80.0F), 1.0F);
}

TEST(Activation, SiluIsNearTheExactOne) {
  for_numbers([](float z) {
    const auto [y, derivative] = activate<kSiLU>(z);
    const double share = exact_sigmoid(z);
    EXPECT_NEAR(y, z * share, 4e-7 * std::abs(z * share) + 1e-30) << z;
    EXPECT_NEAR(derivative, share * (1 + z * (1 - share)), 1.2e-6) << z;
  });
}

TEST(Activation, HardswishIsNearTheExactOne) {
  for_numbers([](float z) {
    const auto [y, derivative] = activate<kHardswish>(z);
    const double share = std::fmin(std::fmax(double{z} + 3, 0), 6) / 6;
    EXPECT_NEAR(y, z * share, 2e-7 * std::abs(z) + 1e-30) << z;
    EXPECT_NEAR(derivative, z <= -3 ? 0 : z >= 3 ? 1 : double{z} / 3 + 0.5, 2e-7) << z;
  });
}

TEST(Activation, Relu6IsExact) {
  for_numbers([](float z) {
    const auto [y, derivative] = activate<kReLU6>(z);
    EXPECT_EQ(y, std::fmin(std::fmax(z, 0.0F), 6.0F));
    EXPECT_EQ(derivative, z > 0 && z < 6 ? 1.0F : 0.0F);
  });
  EXPECT_EQ(activate<kReLU6>(6.0F).derivative, 0.0F);
  EXPECT_EQ(activate<kReLU6>(0.0F).derivative, 0.0F);
}

TEST(Activation, OfWhatIsNotFinite) {
  EXPECT_EQ(activate<kReLU6>(kInfinity).y, 6.0F);
  EXPECT_EQ(activate<kReLU6>(-kInfinity).y, 0.0F);
  EXPECT_EQ(activate<kSiLU>(kInfinity).y, kInfinity);
  EXPECT_NEAR(activate<kSiLU>(-kInfinity).y, 0.0F, 1e-30F);
  EXPECT_EQ(activate<kHardswish>(kInfinity).y, kInfinity);
  EXPECT_TRUE(is_nan(activate<kReLU6>(kNaN).y));
  EXPECT_TRUE(is_nan(activate<kSiLU>(kNaN).y));
  EXPECT_TRUE(is_nan(activate<kHardswish>(kNaN).y));
}

TEST(Derivatives, AreInTheirRange) {
  const auto in_range = [](ActivationFunction function, float derivative) {
    const auto [lowest, highest] = derivative_range(function);
    return lowest <= derivative && derivative <= highest;
  };
  for_numbers([&](float z) {
    EXPECT_TRUE(in_range(kReLU6, activate<kReLU6>(z).derivative)) << z;
    EXPECT_TRUE(in_range(kSiLU, activate<kSiLU>(z).derivative)) << z;
    EXPECT_TRUE(in_range(kHardswish, activate<kHardswish>(z).derivative)) << z;
  });
}

class DerivativeCodes : public testing::TestWithParam<std::tuple<ActivationFunction, int>> {};
INSTANTIATE_TEST_SUITE_P(All, DerivativeCodes,
                         testing::Combine(testing::Values(kReLU6, kSiLU, kHardswish),
                                          testing::Range(1, kMostDerivativeBits + 1)));

/// Over all numbers that noise can be.
TEST_P(DerivativeCodes, HaveTheDerivativeAsTheirExpectation) {
  const auto [function, bits] = GetParam();
  const DerivativeEncoder encoder({function, bits});
  const DerivativeGrid grid({function, bits});
  const auto [lowest, highest] = derivative_range(function);
  for (const float share : {0.0F, 1e-4F, 0.2F, 1.0F / 3, 0.5F, 0.77F, 1.0F}) {
    const float derivative = lowest + share * (highest - lowest);
    double sum = 0;
    for (uint32_t noise = 0; noise < 1u << 16; ++noise) {
      const uint32_t code = encoder.encode(derivative, noise);
      ASSERT_LE(code, highest_code(bits));
      sum += grid.decode(static_cast<float>(code));
    }
    EXPECT_NEAR(sum / (1 << 16), derivative, (highest - lowest) / 60000) << share;
  }
}

TEST_P(DerivativeCodes, OfTheGridAreExact) {
  const auto [function, bits] = GetParam();
  const DerivativeEncoder encoder({function, bits});
  const DerivativeGrid grid({function, bits});
  for (uint32_t code = 0; code <= highest_code(bits); ++code) {
    EXPECT_EQ(encoder.encode(grid.decode(static_cast<float>(code)), half_step(kMinBits)), code);
  }
  EXPECT_EQ(encoder.encode(kNaN, 0xFFFF), 0u);
}

TEST(Derivatives, OfRelu6AreExactWhateverTheNoise) {
  const DerivativeEncoder encoder({kReLU6, 1});
  const DerivativeGrid grid({kReLU6, 1});
  for (const uint32_t noise : {0u, 0x8000u, 0xFFFFu}) {
    EXPECT_EQ(encoder.encode(0.0F, noise), 0u);
    EXPECT_EQ(encoder.encode(1.0F, noise), 1u);
  }
  EXPECT_EQ(grid.decode(0.0F), 0.0F);
  EXPECT_EQ(grid.decode(1.0F), 1.0F);
}

TEST(DerivedGradient, OfADerivativeOfZeroIsZero) {
  EXPECT_EQ(derived_gradient(kInfinity, 0.0F), 0.0F);
  EXPECT_EQ(derived_gradient(kNaN, 0.0F), 0.0F);
  EXPECT_EQ(derived_gradient(3.0F, 0.5F), 1.5F);
}

TEST(Relu6OfCopy, IsSixAboveTheSlope) {
  EXPECT_EQ(relu6_of_copy(-0.5F, false, false), 0.0F);
  EXPECT_EQ(relu6_of_copy(7.5F, true, true), 7.5F);
  EXPECT_EQ(relu6_of_copy(5.5F, true, false), 6.0F);
  EXPECT_TRUE(is_nan(relu6_of_copy(kNaN, true, false)));
}

}  // namespace
}  // namespace actnn
