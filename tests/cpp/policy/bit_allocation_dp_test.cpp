#include "actnn/policy/bit_allocation_dp.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "actnn/policy/bit_allocation.h"

namespace actnn {
namespace {

TEST(BitAllocationDp, WithOneStateItIsAtLeastAsGoodAsTheGreedyAnswer) {
  const std::vector<double> sensitivity{1.0, 64.0, 3.0, 4096.0, 0.5};
  const auto variance = [&](const at::Tensor& bits) {
    double sum = 0.0;
    for (size_t i = 0; i < sensitivity.size(); ++i) {
      const double levels = (1 << bits.const_data_ptr<uint8_t>()[i]) - 1;
      sum += sensitivity[i] / (levels * levels);
    }
    return sum;
  };
  const at::Tensor given = at::tensor(sensitivity, at::kDouble);
  const auto [bits, probability] = allocate_bits_dp(at::ones({5}, at::kDouble), given, 8, 3.0, 1);
  const at::Tensor greedy = allocate_bits(at::full({5}, 8, at::kByte), given, at::ones({5}, at::kLong), /*target=*/15);
  EXPECT_TRUE(at::equal(probability, at::ones({5}, at::kDouble)));
  EXPECT_LE(variance(bits), variance(greedy));
  EXPECT_EQ(bits.sum().item<int64_t>(), 15);
}

TEST(BitAllocationDp, ABudgetForEverythingIsSpentOnEverything) {
  const auto [bits, probability] = allocate_bits_dp(at::ones({3}), at::ones({3}), 4, 100.0, 2);
  EXPECT_TRUE(at::equal(bits, at::full({3}, 4, at::kByte)));
  EXPECT_TRUE(at::equal(probability, at::ones({3})));
}

TEST(BitAllocationDp, ABudgetBelowTheCheapestChoiceIsRefused) {
  EXPECT_THROW(allocate_bits_dp(at::ones({3}), at::ones({3}), 4, 0.2, 4), c10::ValueError);
}

}  // namespace
}  // namespace actnn
