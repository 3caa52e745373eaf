#include "actnn/policy/gradient_noise.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "actnn/autograd/linear.h"

namespace actnn {
namespace {

TEST(GradientNoise, EstimatesVarianceAndSquaredNorm) {
  at::manual_seed(0);
  const at::Tensor mean = at::randn({4000});
  GradientNoise noise;
  for (int draw = 0; draw < 50; ++draw) {
    noise.add({(mean + 0.5 * at::randn({4000})).slice(0, 0, 1000), at::Tensor()});
  }
  const double squared_norm = mean.slice(0, 0, 1000).square().sum().item<double>();
  EXPECT_EQ(noise.draws(), 50);
  EXPECT_NEAR(noise.variance(), 250.0, 5.0);
  EXPECT_NEAR(noise.squared_norm(), squared_norm, 30.0);
  EXPECT_NEAR(noise.noise(), 250.0 / squared_norm, 0.02);
}

TEST(GradientNoise, NeedsTwoDrawsOfTheSameParameters) {
  GradientNoise noise;
  EXPECT_THROW(noise.variance(), c10::ValueError);
  noise.add({at::ones({3})});
  EXPECT_THROW(noise.noise(), c10::ValueError);
  EXPECT_THROW(noise.add({at::ones({3}), at::ones({3})}), c10::ValueError);
  noise.add({at::ones({3})});
  EXPECT_EQ(noise.noise(), 0.0);
}

TEST(GradientNoise, MeasuresWhatCompressionAddsAndLeavesGradientsAlone) {
  at::manual_seed(0);
  const at::Tensor input = at::randn({64, 256});
  const at::Tensor weight = at::randn({32, 256}).set_requires_grad(true);
  const at::Tensor kept = at::ones({32, 256});
  weight.mutable_grad() = kept;
  const auto noise_with = [&](int64_t bits) {
    return measure_gradient_noise(
               {weight}, [&] { linear(input, weight, std::nullopt, {.bits = bits}).square().sum().backward(); }, 6)
        .noise();
  };
  const double two = noise_with(2);
  const double four = noise_with(4);
  // (2^4 - 1)^2 / (2^2 - 1)^2 = 25, and rounding of the grid.
  EXPECT_NEAR(two / four, 25.0, 6.0);
  EXPECT_TRUE(weight.grad().is_same(kept));
  EXPECT_THROW(measure_gradient_noise(
                   {weight}, [] {}, 2),
               c10::ValueError);
  EXPECT_THROW(measure_gradient_noise(
                   {weight}, [] {}, 1),
               c10::ValueError);
  EXPECT_TRUE(weight.grad().is_same(kept));
}

}  // namespace
}  // namespace actnn
