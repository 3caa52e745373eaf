#include "actnn/cpu/dropout.h"

#include <gtest/gtest.h>

#include <cmath>

#include "actnn/core/layout.h"
#include "test_data.h"

namespace actnn::cpu {
namespace {

std::vector<uint8_t> apply(const std::vector<uint8_t>& input, ElementType type, int64_t count, double probability) {
  std::vector<uint8_t> output(input.size(), 0xFF);
  const DropoutArguments arguments{.input = input.data(),
                                   .type = type,
                                   .count = count,
                                   .probability = probability,
                                   .random = {42, 7},
                                   .output = output.data()};
  const int64_t quads = ceil_div(count, kDropoutQuad);
  dropout(arguments, quads / 3, quads);
  dropout(arguments, 0, quads / 3);
  return output;
}

TEST(Dropout, IsTheSameOnAllTargets) {
  for (const ElementType type : kElementTypes) {
    for (const int64_t count : {0, 1, 3, 4, 63, 64, 65, 1000}) {
      for (const double probability : {0.0, 1e-9, 0.1, 0.5, 0.999, 1.0}) {
        const std::vector<uint8_t> input = as_elements(random_values(count, 8, true), type);
        select_target("reference");
        const std::vector<uint8_t> expected = apply(input, type, count, probability);
        for_targets([&](const std::string& target) {
          EXPECT_EQ(apply(input, type, count, probability), expected)
              << target << ", count " << count << ", probability " << probability;
        });
      }
    }
  }
}

TEST(Dropout, KeepsAndScalesTheRightShare) {
  const int64_t count = 1 << 20;
  const std::vector<uint8_t> ones = as_elements(std::vector<float>(count, 1.0F), ElementType::kFloat32);
  for (const double probability : {0.0, 0.1, 0.5, 0.9, 1.0}) {
    std::vector<float> output(static_cast<size_t>(count));
    const std::vector<uint8_t> bytes = apply(ones, ElementType::kFloat32, count, probability);
    std::memcpy(output.data(), bytes.data(), bytes.size());
    int64_t kept = 0;
    for (const float value : output) {
      ASSERT_TRUE(value == 0.0F || value == static_cast<float>(1.0 / (1.0 - probability))) << value;
      kept += value != 0.0F ? 1 : 0;
    }
    const double expected = static_cast<double>(count) * (1.0 - probability);
    EXPECT_NEAR(static_cast<double>(kept), expected, 5.0 * std::sqrt(expected * probability));
  }
}

}  // namespace
}  // namespace actnn::cpu
