#include "actnn/core/philox.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace actnn {
namespace {

std::vector<uint32_t> words(const PhiloxBlock& block) { return {block.word, block.word + 4}; }

// Known answers of Random123 for philox4x32-10.
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(words(philox4x32(0, 0, 0)), (std::vector<uint32_t>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(words(philox4x32(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0})),
            (std::vector<uint32_t>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(words(philox4x32(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e)),
            (std::vector<uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, IsAConstantExpression) { static_assert(philox4x32(0, 0, 0).word[0] == 0x6627e8d5); }

TEST(Philox, DealsEightHalvesPerBlockLowHalfFirst) {
  const PhiloxBlock block{{0x11112222, 0x33334444, 0x55556666, 0x77778888}};
  std::vector<uint32_t> halves;
  for (int k = 0; k < 8; ++k) {
    halves.push_back(random16(block, k));
  }
  EXPECT_EQ(halves, (std::vector<uint32_t>{0x2222, 0x1111, 0x4444, 0x3333, 0x6666, 0x5555, 0x8888, 0x7777}));
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
