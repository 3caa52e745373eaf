#include "actnn/ops/random.h"

#include <ATen/Context.h>
#include <ATen/core/PhiloxRNGEngine.h>
#include <gtest/gtest.h>

#include <random>

#include "actnn/core/philox.h"

namespace actnn {
namespace {

// The documented correspondence: 10 rounds, seed = key, subsequence = counter_high, offset = counter_low.
TEST(Random, PhiloxWithTenRoundsIsTorchs) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t seed = random();
    const uint64_t counter = random();
    const uint64_t offset = random();
    at::Philox4_32 engine(seed, offset, counter);
    const PhiloxBlock block = philox4x32<10>(seed, counter, offset);
    for (const uint32_t word : block.word) {
      EXPECT_EQ(word, engine());
    }
  }
}

TEST(Random, AStateHoldsSeedAndOffset) {
  const at::Tensor state = make_rng_state(-5);
  EXPECT_EQ(state.scalar_type(), at::kLong);
  EXPECT_EQ(state[0].item<int64_t>(), -5);
  EXPECT_EQ(state[1].item<int64_t>(), 0);
}

TEST(Random, TheDefaultStateFollowsManualSeed) {
  at::manual_seed(3);
  const at::Tensor first = default_rng_state(at::kCPU);
  const at::Tensor second = default_rng_state(at::kCPU);
  at::manual_seed(3);
  EXPECT_TRUE(first.equal(default_rng_state(at::kCPU)));
  EXPECT_FALSE(first.equal(second));
}

}  // namespace
}  // namespace actnn
