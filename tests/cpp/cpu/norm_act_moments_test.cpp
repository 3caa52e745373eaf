#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "actnn/cpu/norm_act.h"
#include "tests/cpp/cpu/test_data.h"

namespace actnn::cpu {
namespace {

constexpr int64_t kRows = 2 * kPartRows + 5;

TEST(NormActMoments, AreThoseOfTheRows) {
  constexpr int64_t kChannels = 7;
  const std::vector<float> values = random_values(kRows * kChannels, 2, false);
  for (int64_t part = 0; part < 3; ++part) {
    std::vector<double> mean(kChannels);
    std::vector<double> squares(kChannels);
    part_moments(values.data(), ElementType::kFloat32, kRows, kChannels, part, mean.data(), squares.data());
    const int64_t last = std::min((part + 1) * kPartRows, kRows);
    for (int64_t c = 0; c < kChannels; ++c) {
      double sum = 0;
      double sum_of_squares = 0;
      for (int64_t row = part * kPartRows; row < last; ++row) {
        const double x = values[static_cast<size_t>(row * kChannels + c)];
        sum += x;
        sum_of_squares += x * x;
      }
      const auto count = static_cast<double>(last - part * kPartRows);
      EXPECT_NEAR(mean[static_cast<size_t>(c)], sum / count, 1e-12);
      EXPECT_NEAR(squares[static_cast<size_t>(c)], sum_of_squares - sum * sum / count, 1e-8);
    }
  }
}

TEST(NormActMoments, OfThePartsAreJoined) {
  constexpr int64_t kChannels = 16;
  std::vector<float> values = random_values(kRows * kChannels, 2, false);
  values[1] = 1e6F;  // where distances count from
  std::vector<double> means(3 * kChannels);
  std::vector<double> squares(3 * kChannels);
  for (int64_t part = 0; part < 3; ++part) {
    part_moments(values.data(), ElementType::kFloat32, kRows, kChannels, part,
                 &means[static_cast<size_t>(part * kChannels)], &squares[static_cast<size_t>(part * kChannels)]);
  }
  std::vector<float> mean(kChannels);
  std::vector<float> variance(kChannels);
  join_moments(means.data(), squares.data(), kRows, kChannels, mean.data(), variance.data());
  for (size_t c = 0; c < kChannels; ++c) {
    double sum = 0;
    for (size_t row = 0; row < kRows; ++row) {
      sum += values[row * kChannels + c];
    }
    const double expected = sum / kRows;
    double sum_of_squares = 0;
    for (size_t row = 0; row < kRows; ++row) {
      sum_of_squares += (values[row * kChannels + c] - expected) * (values[row * kChannels + c] - expected);
    }
    EXPECT_NEAR(mean[c], expected, 1e-7 * std::abs(expected) + 1e-9);
    EXPECT_NEAR(variance[c] * double{kRows}, sum_of_squares, 1e-7 * sum_of_squares);
  }
}

TEST(NormActMoments, OfNoRowsAreZero) {
  float mean = 1.0F;
  float variance = 1.0F;
  join_moments(nullptr, nullptr, 0, 1, &mean, &variance);
  EXPECT_EQ(mean, 0.0F);
  EXPECT_EQ(variance, 0.0F);
}

}  // namespace
}  // namespace actnn::cpu
