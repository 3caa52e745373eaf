#include "actnn/core/philox.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace actnn {
namespace {

std::vector<uint32_t> words(const PhiloxBlock& block) { return {block.word, block.word + 4}; }

constexpr uint64_t kOnes = ~uint64_t{0};
// Digits of pi, as Random123's known answers have them.
constexpr uint64_t kPiKey = 0x299f31d0a4093822;
constexpr uint64_t kPiLow = 0x85a308d3243f6a88;
constexpr uint64_t kPiHigh = 0x0370734413198a2e;

// The known answers of Random123 (tests/kat_vectors) for philox4x32 with 7 and with 10 rounds.
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(words(philox4x32(0, 0, 0)), (std::vector<uint32_t>{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}));
  EXPECT_EQ(words(philox4x32(kOnes, kOnes, kOnes)),
            (std::vector<uint32_t>{0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}));
  EXPECT_EQ(words(philox4x32(kPiKey, kPiLow, kPiHigh)),
            (std::vector<uint32_t>{0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}));
}

TEST(Philox, GivesTheKnownAnswersOfTenRounds) {
  EXPECT_EQ(words(philox4x32<10>(0, 0, 0)), (std::vector<uint32_t>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(words(philox4x32<10>(kOnes, kOnes, kOnes)),
            (std::vector<uint32_t>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(words(philox4x32<10>(kPiKey, kPiLow, kPiHigh)),
            (std::vector<uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, IsAConstantExpression) { static_assert(philox4x32(0, 0, 0).word[0] == 0x5f6fb709); }

TEST(Philox, DealsEightHalvesPerBlockLowHalfFirst) {
  const PhiloxBlock block{{0x11112222, 0x33334444, 0x55556666, 0x77778888}};
  std::vector<uint32_t> halves(8);
  for (int k = 0; k < 8; ++k) {
    halves[static_cast<size_t>(k)] = random16(block, k);
  }
  EXPECT_EQ(halves, (std::vector<uint32_t>{0x2222, 0x1111, 0x4444, 0x3333, 0x6666, 0x5555, 0x8888, 0x7777}));
}

TEST(Philox, DealsEightBytesToEachOfTwoOctetsLowestFirst) {
  const PhiloxBlock block{{0x03020100, 0x07060504, 0x0B0A0908, 0x0F0E0D0C}};
  for (int half = 0; half < 2; ++half) {
    const OctetNoise noise = octet_noise(block, half);
    for (int k = 0; k < 8; ++k) {
      EXPECT_EQ(noise[k], static_cast<uint32_t>(8 * half + k));
    }
  }
}

TEST(Philox, NeighbouringOctetsShareABlock) {
  constexpr RandomState kState{3, 5};
  for (const uint64_t number : {uint64_t{0}, uint64_t{1}, uint64_t{6}, uint64_t{0x1FFFFFFFF}}) {
    const PhiloxBlock block = kState.block(number / 2);
    const OctetNoise noise = kState.octet(number);
    EXPECT_EQ(noise.word[0], block.word[number % 2 * 2]);
    EXPECT_EQ(noise.word[1], block.word[number % 2 * 2 + 1]);
  }
}

TEST(Philox, StatesDifferInSeedOffsetAndCounter) {
  std::set<std::vector<uint32_t>> blocks;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (uint64_t offset = 0; offset < 4; ++offset) {
      for (uint64_t counter = 0; counter < 4; ++counter) {
        blocks.insert(words(RandomState{seed, offset}.block(counter)));
      }
    }
  }
  EXPECT_EQ(blocks.size(), 64u);
}

}  // namespace
}  // namespace actnn
