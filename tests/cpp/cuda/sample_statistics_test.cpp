#include "actnn/cuda/sample_statistics.h"

#include <cmath>

#include "actnn/cpu/sample_statistics.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;

/// Sums are in another order than on the CPU, in double precision: the floats are neighbours at most.
void expect_same(const std::vector<float>& actual, const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(expected[i])) {
      EXPECT_TRUE(std::isnan(actual[i])) << "sample " << i;
    } else {
      EXPECT_FLOAT_EQ(actual[i], expected[i]) << "sample " << i;
    }
  }
}

using SampleStatistics = GpuTestOf<ElementType>;
INSTANTIATE_TEST_SUITE_P(All, SampleStatistics, testing::ValuesIn(kElementTypes));

TEST_P(SampleStatistics, AreThoseOfTheCpu) {
  const ElementType type = GetParam();
  for (const int64_t samples : {1, 3, 19}) {
    for (const int64_t count : {1, 105, 256, 1024, 1031, 40'000}) {
      for (const size_t offset : {0, 1, 3}) {
        const std::vector<uint8_t> elements = as_elements(random_values(samples * count, 2, count == 105), type);
        const GpuBytes input(elements, offset * static_cast<size_t>(element_size(type)));
        const Samples arguments{.elements = input.as<void>(), .type = type, .samples = samples, .count = count};
        const auto expected = [&](auto&& statistic) {
          std::vector<float> sums;
          for (int64_t sample = 0; sample < samples; ++sample) {
            sums.push_back(statistic(elements.data() + sample * count * element_size(type)));
          }
          return sums;
        };
        const GpuArray<float> sums(samples);
        for (const int64_t group_size : {32, 96, 256, 1024}) {
          const GpuArray<double> scratch(statistics_scratch(arguments, group_size));
          check(group_range_squares(arguments, group_size, scratch.data(), sums.data(), nullptr));
          expect_same(sums.read(), expected([&](const uint8_t* sample) {
                        return cpu::group_range_square_sum(sample, type, count, group_size);
                      }));
        }
        const GpuArray<double> scratch(statistics_scratch(arguments, 1024));
        check(square_norms(arguments, scratch.data(), sums.data(), nullptr));
        expect_same(sums.read(),
                    expected([&](const uint8_t* sample) { return cpu::square_norm(sample, type, count); }));
      }
    }
  }
}

TEST_P(SampleStatistics, AreZeroForEmptySamples) {
  const Samples arguments{.elements = nullptr, .type = GetParam(), .samples = 4, .count = 0};
  const GpuArray<float> sums(std::vector<float>{1, 2, 3, 4});
  const GpuArray<double> scratch(statistics_scratch(arguments, 256));
  check(group_range_squares(arguments, 256, scratch.data(), sums.data(), nullptr));
  EXPECT_EQ(sums.read(), std::vector<float>(4, 0.0F));
  check(square_norms(arguments, scratch.data(), sums.data(), nullptr));
  EXPECT_EQ(sums.read(), std::vector<float>(4, 0.0F));
}

}  // namespace
}  // namespace actnn::cuda
