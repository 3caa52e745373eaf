#include "actnn/cuda/bit_allocation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "actnn/core/bit_allocation.h"
#include "actnn/cpu/bit_allocation.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using BitAllocation = GpuTest;

void expect_the_cpus_bits(const std::vector<float>& range, int initial, int64_t total) {
  const auto samples = static_cast<int64_t>(range.size());
  const int64_t excess = samples * initial - total;
  const GpuArray<float> on_gpu(range);
  const GpuArray<float> gradient(std::vector<float>{3.0F});
  const GpuArray<float> sensitivity(samples);
  const GpuArray<uint8_t> bits(samples);
  check(allocate_sample_bits({.range = on_gpu.data(), .gradient = gradient.data(), .factor = 0.3F, .samples = samples},
                             initial, excess, sensitivity.data(), bits.data(), nullptr));
  std::vector<float> expected_sensitivity;
  for (const float of_sample : range) {
    expected_sensitivity.push_back(sample_sensitivity(of_sample, 0.3F, 3.0F));
  }
  std::vector<uint8_t> expected(range.size());
  cpu::allocate_sample_bits(expected_sensitivity.data(), samples, initial, excess, expected.data());
  EXPECT_EQ(bits.read(), expected) << samples << " samples, " << initial << " bits, total " << total;
  const std::vector<float> actual_sensitivity = sensitivity.read();
  for (size_t i = 0; i < range.size(); ++i) {
    if (!std::isnan(range[i])) {
      EXPECT_EQ(actual_sensitivity[i], expected_sensitivity[i]);
    }
  }
}

TEST_F(BitAllocation, BitsAreThoseOfTheCpu) {
  std::mt19937 random(1);
  std::lognormal_distribution<float> distribution(0.0F, 4.0F);
  for (const size_t samples : {1, 2, 7, 8, 9, 63, 64, 65, 500}) {
    std::vector<float> range(samples);
    std::generate(range.begin(), range.end(), [&] { return distribution(random); });
    for (const int initial : {1, 2, 5, 8}) {
      const auto all = static_cast<int64_t>(samples) * initial;
      for (const int64_t total : {int64_t{0}, all / 3, all / 2, all - 1, all, all + 9}) {
        expect_the_cpus_bits(range, initial, total);
      }
    }
  }
}

TEST_F(BitAllocation, BitsAreThoseOfTheCpuForTiesZerosAndExtremes) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> ranges = {
      std::vector<float>(70, 1.0F),
      std::vector<float>(70, 0.0F),
      {0, 3e38F, 0, 1e-45F, 1, 1, 1, 2, 2},
      {kInfinity, std::nanf(""), -1.0F, -0.0F, 0, kInfinity, 1, std::nanf(""), 3e38F}};
  for (const std::vector<float>& range : ranges) {
    for (int64_t total = 0; total <= 8 * static_cast<int64_t>(range.size()); total += 3) {
      expect_the_cpus_bits(range, 8, total);
    }
  }
}

TEST_F(BitAllocation, AGradientNormRunsAfterTheMeansOfBatches) {
  const GpuArray<float> gradient(std::vector<float>{0.0F});
  const GpuArray<float> known(1);
  const auto update = [&](const std::vector<float>& norms) {
    const GpuArray<float> on_gpu(norms);
    check(update_gradient_norm(on_gpu.data(), static_cast<int64_t>(norms.size()), gradient.data(), known.data(),
                               nullptr));
    EXPECT_EQ(known.read()[0], gradient.read()[0] > 0 ? gradient.read()[0] : 1.0F);
    return gradient.read()[0];
  };
  EXPECT_EQ(update({std::nanf(""), 1.0F}), 0.0F);
  EXPECT_EQ(update({2.0F, 4.0F}), 3.0F);
  EXPECT_EQ(update(std::vector<float>(100, 7.0F)), 5.0F);
  EXPECT_EQ(update({std::numeric_limits<float>::infinity()}), 5.0F);
}

}  // namespace
}  // namespace actnn::cuda
