#include "actnn/policy/bit_allocation.h"

#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace actnn {
namespace {

using Bits = std::vector<uint8_t>;

struct Problem {
  Bits bits;
  std::vector<double> sensitivity;
  std::vector<int64_t> weight;
};

Bits in_parallel(const Problem& problem, int64_t target) {
  const at::Tensor result =
      allocate_bits(at::tensor(problem.bits, at::kByte), at::tensor(problem.sensitivity, at::kDouble),
                    at::tensor(problem.weight, at::kLong), target);
  const auto* data = result.const_data_ptr<uint8_t>();
  return {data, data + result.numel()};
}

int64_t cost(const Problem& problem, const Bits& bits) {
  return std::inner_product(bits.begin(), bits.end(), problem.weight.begin(), int64_t{0});
}

double added_variance(const Problem& problem, const Bits& bits) {
  double sum = 0.0;
  for (size_t i = 0; i < bits.size(); ++i) {
    sum += problem.sensitivity[i] / std::pow(std::pow(2.0, bits[i]) - 1.0, 2);
  }
  return sum;
}

/// Both answers are equal, and neither stops early or goes on too long.
void check(const Problem& problem, int64_t target) {
  const Bits bits = allocate_bits_greedily(problem.bits, problem.sensitivity, problem.weight, target);
  EXPECT_EQ(in_parallel(problem, target), bits);
  const int64_t total = cost(problem, bits);
  const bool all_least = std::all_of(bits.begin(), bits.end(), [](uint8_t b) { return b == 1; });
  EXPECT_TRUE(total <= target || all_least);
  if (bits != problem.bits) {
    EXPECT_GT(total + *std::max_element(problem.weight.begin(), problem.weight.end()), target);
  }
}

Problem random_problem(std::mt19937& random, size_t count) {
  std::lognormal_distribution<double> sensitivity(0.0, 4.0);
  std::uniform_int_distribution<int> bits(1, 8);
  std::uniform_int_distribution<int64_t> weight(1, 1000);
  Problem problem;
  for (size_t i = 0; i < count; ++i) {
    problem.bits.push_back(static_cast<uint8_t>(bits(random)));
    problem.sensitivity.push_back(sensitivity(random));
    problem.weight.push_back(weight(random));
  }
  return problem;
}

TEST(BitAllocation, ParallelEqualsGreedyOnRandomProblems) {
  std::mt19937 random(1);
  for (const size_t count : {1, 2, 7, 100, 1000}) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      const Problem problem = random_problem(random, count);
      const int64_t total = cost(problem, problem.bits);
      for (const int64_t target : {int64_t{-5}, int64_t{0}, total / 4, total / 2, total - 1, total, total * 8}) {
        check(problem, target);
      }
    }
  }
}

TEST(BitAllocation, ParallelEqualsGreedyOnTiesZerosAndExtremes) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::vector<std::vector<double>> sensitivities = {
      std::vector<double>(16, 1.0),
      std::vector<double>(16, 0.0),
      {1e300, 0, 0, 0, 1, 1, 1, 1, 1e-300, 1e-310, 5e-324, 0, 1, 1, 2, 2},
      {kInfinity, kInfinity, std::nan(""), -1.0, -0.0, 0.0, 1, 1, 1e308, 1e308, kInfinity, 0, 0, 4, 4, 4}};
  for (const std::vector<double>& sensitivity : sensitivities) {
    for (const int64_t weight : {1, 3, 1 << 30}) {
      for (int64_t target = 0; target <= 130; ++target) {
        check({Bits(16, 8), sensitivity, std::vector<int64_t>(16, weight)}, target * weight);
      }
    }
  }
}

TEST(BitAllocation, IsTheBestForEqualWeights) {
  std::mt19937 random(2);
  for (int repeat = 0; repeat < 30; ++repeat) {
    Problem problem = random_problem(random, 4);
    problem.bits.assign(4, 8);
    problem.weight.assign(4, 1);
    for (int64_t target = 4; target <= 32; ++target) {
      const Bits bits = allocate_bits_greedily(problem.bits, problem.sensitivity, problem.weight, target);
      Bits other(4, 1);
      for (int code = 0; code < 4096; ++code) {  // every assignment of 1..8 bits
        for (int i = 0; i < 4; ++i) {
          other[i] = static_cast<uint8_t>(1 + (code >> (3 * i)) % 8);
        }
        if (cost(problem, other) <= target) {
          ASSERT_GE(added_variance(problem, other), added_variance(problem, bits) * (1 - 1e-12));
        }
      }
    }
  }
}

TEST(BitAllocation, GivesMoreBitsToWhatIsMoreSensitive) {
  const Problem problem{Bits(4, 8), {1.0, 16.0, 256.0, 4096.0}, std::vector<int64_t>(4, 10)};
  EXPECT_EQ(in_parallel(problem, 100), (Bits{1, 2, 3, 4}));
}

TEST(BitAllocation, LeavesEachElementItsFewest) {
  std::mt19937 random(3);
  for (int repeat = 0; repeat < 30; ++repeat) {
    const Problem problem = random_problem(random, 16);
    Bits fewest(16);
    for (size_t i = 0; i < fewest.size(); ++i) {
      fewest[i] = static_cast<uint8_t>(1 + i % problem.bits[i]);
    }
    const at::Tensor given = at::tensor(fewest, at::kByte);
    const at::Tensor bits = at::tensor(problem.bits, at::kByte);
    const at::Tensor sensitivity = at::tensor(problem.sensitivity, at::kDouble);
    const at::Tensor weight = at::tensor(problem.weight, at::kLong);
    const int64_t all = cost(problem, problem.bits);
    for (int64_t target = 0; target <= all; target += all / 7 + 1) {
      const Bits greedy = allocate_bits_greedily(problem.bits, problem.sensitivity, problem.weight, target, fewest);
      const at::Tensor parallel = allocate_bits(bits, sensitivity, weight, target, given);
      EXPECT_TRUE(parallel.equal(at::tensor(greedy, at::kByte)));
      EXPECT_TRUE(parallel.ge(given).all().item<bool>());
    }
    const at::Tensor any = at::scalar_tensor(std::numeric_limits<double>::max(), at::kDouble);
    EXPECT_TRUE(allocate_bits_for_noise(bits, sensitivity, weight, any, given).equal(given));
  }
}

TEST(BitAllocation, AcceptsNothing) { EXPECT_TRUE(in_parallel({}, 0).empty()); }

TEST(BitAllocation, RefusesWhatDoesNotFitTogether) {
  const at::Tensor bits = at::tensor(Bits(3, 8), at::kByte);
  const at::Tensor weight = at::tensor(std::vector<int64_t>(3, 1), at::kLong);
  const at::Tensor sensitivity = at::tensor(std::vector<double>(3, 1.0), at::kDouble);
  EXPECT_THROW(allocate_bits(weight, sensitivity, weight, 3), c10::TypeError);
  EXPECT_THROW(allocate_bits(bits, weight, weight, 3), c10::TypeError);
  EXPECT_THROW(allocate_bits(bits, sensitivity, sensitivity, 3), c10::TypeError);
  EXPECT_THROW(allocate_bits(bits, sensitivity.slice(0, 1), weight, 3), c10::ValueError);
  EXPECT_THROW(allocate_bits(bits.unsqueeze(0), sensitivity, weight, 3), c10::ValueError);
  EXPECT_THROW(allocate_bits(bits, sensitivity, weight, 3, weight), c10::TypeError);
  EXPECT_THROW(allocate_bits(bits, sensitivity, weight, 3, bits.slice(0, 1)), c10::ValueError);
}

}  // namespace
}  // namespace actnn
