#include "actnn/core/norm_act.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

namespace actnn {
namespace {

constexpr float kMean = 0.3F;
constexpr float kRstd = 1.6F;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

constexpr float kWeights[] = {1.0F, -0.7F, 2.5F, 1e-3F, -1e-6F, 1e-42F, 0.0F};
constexpr float kBiases[] = {0.0F, 0.1F, -0.4F, 7.0F, -30.0F};

/// Calls `body(weight, bias, has_kink)` with channels of all kinds.
template <class Body>
void for_channels(Body&& body) {
  for (const float weight : kWeights) {
    for (const float bias : kBiases) {
      body(weight, bias, false);
      body(weight, bias, true);
    }
  }
}

TEST(Channels, AreSplitIfTheyHaveAKinkThatIsNear) {
  EXPECT_FALSE(is_linear_channel(1.0F, 8.0F, true));
  EXPECT_FALSE(is_linear_channel(-1.0F, -8.0F, true));
  EXPECT_FALSE(is_linear_channel(0.5F, 0.0F, true));
  EXPECT_TRUE(is_linear_channel(1.0F, 8.1F, true));
  EXPECT_TRUE(is_linear_channel(1e-3F, 0.1F, true));
  EXPECT_TRUE(is_linear_channel(0.0F, 0.0F, true));
  EXPECT_TRUE(is_linear_channel(1e-42F, 0.0F, true));  // of which the inverse is infinite
  EXPECT_TRUE(is_linear_channel(1.0F, 0.0F, false));
  EXPECT_TRUE(is_linear_channel(kNaN, 0.0F, true));
  EXPECT_TRUE(is_linear_channel(1.0F, kNaN, true));
}

TEST(Channels, AreOfOneKindInBothDirections) {
  for_channels([](float weight, float bias, bool has_kink) {
    EXPECT_EQ(forward_channel(kMean, kRstd, weight, bias, has_kink).linear, decode_map(weight, bias, has_kink).linear);
  });
}

/// s is decoded to the x-hat and z that it was made of.
TEST(Channels, AreDecodedToWhatTheyWere) {
  for_channels([](float weight, float bias, bool has_kink) {
    const NormActChannel channel = forward_channel(kMean, kRstd, weight, bias, has_kink);
    const DecodeMap map = decode_map(weight, bias, has_kink);
    for (const float x : {-2.0F, 0.1F, kMean, 1.7F}) {
      const double normalized = (double{x} - kMean) * kRstd;
      const double z = double{channel.z_scale} * x + channel.z_shift;
      EXPECT_NEAR(z, weight * normalized + bias, 1e-6 * (1 + std::abs(bias)));
      const double s = channel.s_scale * (channel.linear != 0.0F ? x : z) + channel.s_shift;
      const double offset = std::abs(map.q);  // of x-hat to s, which a difference takes off again
      EXPECT_NEAR(map.p * s + map.q, normalized, 2e-6 * (1 + offset)) << weight << " " << bias;
      EXPECT_NEAR(map.a * s + map.b, z, 2e-6 * (1 + std::abs(bias)));
    }
  });
}

/// Copies of split channels have the side of z.
TEST(Channels, ThatAreSplitKeepTheSide) {
  for_channels([](float weight, float bias, bool has_kink) {
    const NormActChannel channel = forward_channel(kMean, kRstd, weight, bias, has_kink);
    if (channel.linear == 0.0F) {
      EXPECT_GT(channel.s_scale, 0.0F);
      EXPECT_EQ(channel.s_shift, 0.0F);
    }
  });
}

TEST(Sums, AreTheirOwnCopies) {
  const NormActChannel channel = sum_channel(0.5F, -0.25F);
  const DecodeMap map = sum_decode_map();
  EXPECT_EQ(channel.z_scale, 0.5F);
  EXPECT_EQ(channel.z_shift, -0.25F);
  EXPECT_EQ(channel.linear, map.linear);
  const float z = 1.75F;
  EXPECT_EQ(map.a * (channel.s_scale * z + channel.s_shift) + map.b, z);
}

/// weight / deviation (dz - E[dz] - x-hat E[dz x-hat]) by hand, of three elements.
TEST(Gradients, AreThoseOfANormalization) {
  for_channels([](float weight, float bias, bool has_kink) {
    const NormActChannel channel = forward_channel(kMean, kRstd, weight, bias, has_kink);
    const DecodeMap map = decode_map(weight, bias, has_kink);
    constexpr std::pair<float, double> kElements[] = {{-1.0F, 0.5}, {0.4F, -2.0}, {1.3F, 0.7}};  // x, dz
    double mean_gradient = 0;
    double mean_gradient_copy = 0;
    double mean_gradient_normalized = 0;
    const auto copy_of = [&](float x) {
      const double z = double{channel.z_scale} * x + channel.z_shift;
      return channel.s_scale * (channel.linear != 0.0F ? x : z) + channel.s_shift;
    };
    for (const auto& [x, dz] : kElements) {
      mean_gradient += dz / 3;
      mean_gradient_copy += dz * copy_of(x) / 3;
      mean_gradient_normalized += dz * (x - kMean) * kRstd / 3;
    }
    const auto sum = static_cast<float>(mean_gradient);
    const auto copy_sum = static_cast<float>(mean_gradient_copy);
    const double offset = 1 + std::abs(map.q);
    EXPECT_NEAR(weight_gradient(map, sum, copy_sum), mean_gradient_normalized, 3e-6 * offset);
    const NormActGradient gradient = gradient_channel(map, weight, kRstd, sum, copy_sum);
    EXPECT_EQ(gradient.linear, map.linear);
    EXPECT_EQ(gradient.a, map.a);
    EXPECT_EQ(gradient.b, map.b);
    for (const auto& [x, dz] : kElements) {
      const double expected = weight * kRstd * (dz - mean_gradient - (x - kMean) * kRstd * mean_gradient_normalized);
      const double actual = gradient.scale * dz + gradient.of_copy * copy_of(x) + gradient.shift;
      EXPECT_NEAR(actual, expected, 1e-5 * offset * std::abs(weight) + 1e-9) << weight << " " << bias;
    }
  });
}

TEST(RunningStatistic, IsALerp) {
  EXPECT_EQ(running_statistic(1.0F, 3.0F, 0.0F), 1.0F);
  EXPECT_EQ(running_statistic(1.0F, 3.0F, 1.0F), 3.0F);
  EXPECT_FLOAT_EQ(running_statistic(1.0F, 3.0F, 0.25F), 1.5F);
  EXPECT_FLOAT_EQ(running_statistic(1.0F, 3.0F, 0.75F), 2.5F);
}

}  // namespace
}  // namespace actnn
