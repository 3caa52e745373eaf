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

TEST(Activation, HardswishOfACopyFollowsItsMasks) {
  for_numbers([](float z) {
    const auto [y, derivative] = activate<kHardswish>(z);
    const ActivatedNumber of_itself = activate_copy<kHardswish>(z, z > 0, jumps_of(kHardswish).are_around(z));
    EXPECT_EQ(of_itself.y, z <= -3 ? 0.0F : y) << z;
    EXPECT_EQ(of_itself.derivative, derivative) << z;
  });
  // Copies beyond the jumps of elements that are between them are not clamped, and the other way round.
  EXPECT_NEAR(activate_copy<kHardswish>(3.3F, true, true).derivative, 1.6, 1e-6);
  EXPECT_NEAR(activate_copy<kHardswish>(-3.3F, false, true).y, 0.165, 1e-6);
  EXPECT_EQ(activate_copy<kHardswish>(2.7F, true, false).derivative, 1.0F);
  EXPECT_EQ(activate_copy<kHardswish>(2.7F, true, false).y, 2.7F);
  EXPECT_EQ(activate_copy<kHardswish>(-2.7F, false, false).y, 0.0F);
  EXPECT_TRUE(is_nan(activate_copy<kHardswish>(kNaN, false, false).y));
}

TEST(Activation, Relu6IsExact) {
  for_numbers([](float z) {
    EXPECT_EQ(relu6(z), std::fmin(std::fmax(z, 0.0F), 6.0F));
    EXPECT_EQ(jumps_of(kReLU6).are_around(z), z > 0 && z < 6);
  });
  EXPECT_FALSE(jumps_of(kReLU6).are_around(6.0F));
  EXPECT_FALSE(jumps_of(kReLU6).are_around(0.0F));
  EXPECT_FALSE(jumps_of(kReLU6).are_around(kNaN));
}

TEST(Activation, OfWhatIsNotFinite) {
  EXPECT_EQ(relu6(kInfinity), 6.0F);
  EXPECT_EQ(relu6(-kInfinity), 0.0F);
  EXPECT_EQ(activate<kSiLU>(kInfinity).y, kInfinity);
  EXPECT_NEAR(activate<kSiLU>(-kInfinity).y, 0.0F, 1e-30F);
  EXPECT_EQ(activate<kHardswish>(kInfinity).y, kInfinity);
  EXPECT_TRUE(is_nan(relu6(kNaN)));
  EXPECT_TRUE(is_nan(activate<kSiLU>(kNaN).y));
  EXPECT_TRUE(is_nan(activate<kHardswish>(kNaN).y));
}

TEST(LeakyRelu, TakesTheSideThatItIsTold) {
  EXPECT_EQ(leaky_relu(2.0F, true, 0.25F), 2.0F);
  EXPECT_EQ(leaky_relu(-2.0F, false, 0.25F), -0.5F);
  EXPECT_EQ(leaky_relu(-0.125F, true, 0.25F), -0.125F);  // a copy, on the wrong side by rounding
  EXPECT_EQ(leaky_relu_gradient(3.0F, true, 0.25F), 3.0F);
  EXPECT_EQ(leaky_relu_gradient(3.0F, false, 0.25F), 0.75F);
}

TEST(LeakyRelu, OfASlopeOfZeroMakesInfinitiesZeroAndKeepsNan) {
  EXPECT_EQ(leaky_relu(-kInfinity, false, 0.0F), 0.0F);
  EXPECT_EQ(leaky_relu(-kInfinity, false, 0.5F), -kInfinity);
  EXPECT_TRUE(is_nan(leaky_relu(kNaN, false, 0.0F)));
  EXPECT_EQ(leaky_relu_gradient(kInfinity, false, 0.0F), 0.0F);
  EXPECT_EQ(leaky_relu_gradient(kNaN, false, 0.0F), 0.0F);
}

TEST(SmoothGradient, OfADerivativeOfZeroIsZero) {
  EXPECT_EQ(smooth_gradient(kInfinity, 0.0F), 0.0F);
  EXPECT_EQ(smooth_gradient(kNaN, 0.0F), 0.0F);
  EXPECT_EQ(smooth_gradient(3.0F, 0.5F), 1.5F);
}

TEST(Masks, AreTheSideAndWhatIsBetweenJumps) {
  EXPECT_EQ(mask_count(kIdentity), 0);
  EXPECT_EQ(mask_count(kLeakyReLU), 1);
  EXPECT_EQ(mask_count(kReLU6), 2);
  EXPECT_EQ(mask_count(kSiLU), 0);
  EXPECT_EQ(mask_count(kHardswish), 2);
}

TEST(Relu6OfCopy, IsSixAboveTheSlope) {
  EXPECT_EQ(relu6_of_copy(-0.5F, false, false), 0.0F);
  EXPECT_EQ(relu6_of_copy(7.5F, true, true), 7.5F);
  EXPECT_EQ(relu6_of_copy(5.5F, true, false), 6.0F);
  EXPECT_TRUE(is_nan(relu6_of_copy(kNaN, true, false)));
}

}  // namespace
}  // namespace actnn
