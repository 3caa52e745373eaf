#include "actnn/policy/sample_bits.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "actnn/policy/bit_allocation.h"

namespace actnn {
namespace {

using Bits = std::vector<uint8_t>;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Bits allocated(const std::vector<float>& range, int64_t initial, int64_t total) {
  const auto [sensitivity, bits] = allocate_sample_bits(at::tensor(range), std::nullopt, 1.0, initial, total);
  const auto* data = bits.const_data_ptr<uint8_t>();
  return {data, data + bits.numel()};
}

Bits greedily(const std::vector<float>& sensitivity, int64_t initial, int64_t total) {
  return allocate_bits_greedily(Bits(sensitivity.size(), static_cast<uint8_t>(initial)),
                                {sensitivity.begin(), sensitivity.end()}, std::vector<int64_t>(sensitivity.size(), 1),
                                total);
}

TEST(SampleBits, AreTheGreedyAnswer) {
  std::mt19937 random(1);
  std::lognormal_distribution<float> distribution(0.0F, 4.0F);
  for (const size_t samples : {1, 2, 5, 33, 300}) {
    std::vector<float> range(samples);
    std::generate(range.begin(), range.end(), [&] { return distribution(random); });
    for (int64_t initial = 1; initial <= 8; ++initial) {
      const auto all = static_cast<int64_t>(samples) * initial;
      for (const int64_t total : {int64_t{-3}, int64_t{0}, all / 3, all / 2, all - 1, all, all + 9}) {
        EXPECT_EQ(allocated(range, initial, total), greedily(range, initial, total)) << initial << ", " << total;
      }
    }
  }
}

TEST(SampleBits, AreTheGreedyAnswerForTiesZerosAndExtremes) {
  const std::vector<std::vector<float>> ranges = {std::vector<float>(9, 1.0F),
                                                  std::vector<float>(9, 0.0F),
                                                  {0, 3e38F, 0, 1e-45F, 1, 1, 1, 2, 2},
                                                  {kInfinity, kNaN, -1.0F, -0.0F, 0, kInfinity, 1, kNaN, 3e38F}};
  for (const std::vector<float>& range : ranges) {
    for (int64_t total = 0; total <= 80; ++total) {
      EXPECT_EQ(allocated(range, 8, total), greedily(range, 8, total)) << total;
    }
  }
}

TEST(SampleBits, SensitivitiesAreProducts) {
  const at::Tensor range = at::tensor({1.0F, 2.0F, kNaN});
  const auto with = [&](const std::optional<at::Tensor>& gradient) {
    const at::Tensor sensitivity = std::get<0>(allocate_sample_bits(range, gradient, 0.5, 8, 12));
    return std::vector<float>(sensitivity.const_data_ptr<float>(), sensitivity.const_data_ptr<float>() + 2);
  };
  EXPECT_EQ(with(std::nullopt), (std::vector<float>{0.5F, 1.0F}));
  EXPECT_EQ(with(at::scalar_tensor(0.0F)), (std::vector<float>{0.5F, 1.0F}));
  EXPECT_EQ(with(at::scalar_tensor(6.0F)), (std::vector<float>{3.0F, 6.0F}));
}

TEST(SampleBits, AGradientNormRunsAfterTheMeansOfBatches) {
  at::Tensor gradient = at::scalar_tensor(0.0F);
  const auto update = [&](const std::vector<float>& norms) {
    const auto known = update_gradient_norm_(gradient, at::tensor(norms, at::kFloat)).item<float>();
    EXPECT_EQ(known, gradient.item<float>() > 0 ? gradient.item<float>() : 1.0F);
    return gradient.item<float>();
  };
  EXPECT_EQ(update({kNaN, 1.0F}), 0.0F);
  EXPECT_EQ(update({0.0F, 0.0F}), 0.0F);
  EXPECT_EQ(update({2.0F, 4.0F}), 3.0F);
  EXPECT_EQ(update({7.0F}), 5.0F);
  EXPECT_EQ(update({kInfinity}), 5.0F);
  EXPECT_EQ(update({}), 5.0F);
}

TEST(SampleBits, RefuseWhatDoesNotFitTogether) {
  const at::Tensor range = at::ones({3});
  EXPECT_THROW(allocate_sample_bits(at::ones({3}, at::kDouble), {}, 1.0, 8, 6), c10::TypeError);
  EXPECT_THROW(allocate_sample_bits(at::ones({3, 1}), {}, 1.0, 8, 6), c10::ValueError);
  EXPECT_THROW(allocate_sample_bits(range, at::ones({1}), 1.0, 8, 6), c10::ValueError);
  EXPECT_THROW(allocate_sample_bits(range, {}, 1.0, 9, 6), c10::ValueError);
  EXPECT_THROW(allocate_sample_bits(range, {}, 1.0, 0, 6), c10::ValueError);
  at::Tensor gradient = at::ones({});
  EXPECT_THROW(update_gradient_norm_(gradient, gradient), c10::ValueError);
  EXPECT_THROW(update_gradient_norm_(gradient, at::ones({3}, at::kHalf)), c10::TypeError);
}

}  // namespace
}  // namespace actnn
