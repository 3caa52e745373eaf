#include "actnn/core/columns.h"

#include <gtest/gtest.h>

#include <set>

namespace actnn {
namespace {

using Layout = ColumnLayout<int64_t>;

constexpr int64_t kRows[] = {0, 1, 5, 31, 32, 33, 63, 64, 65, 128, 255, 256, 257, 700};
constexpr int64_t kChannels[] = {1, 2, 3, 8, 17};
constexpr int64_t kGroupRows[] = {64, 128, 256};

/// Calls `body` with layouts of many sizes.
template <class Body>
void for_layouts(Body&& body) {
  for (const int64_t rows : kRows) {
    for (const int64_t channels : kChannels) {
      for (const int64_t group_rows : kGroupRows) {
        body(Layout{.rows = rows, .channels = channels, .group_rows = group_rows});
      }
    }
  }
}

TEST(ColumnLayout, GroupsFollowOneAnotherWithoutGaps) {
  for_layouts([](const Layout& layout) {
    for (int width = 1; width <= kMaxBits; ++width) {
      int64_t expected = 0;
      for (int64_t block = 0; block < layout.blocks(); ++block) {
        for (int64_t channel = 0; channel < layout.channels; ++channel) {
          ASSERT_EQ(layout.group_offset(block, channel, width), expected);
          expected += layout.block_octets(block) * width;
        }
      }
      ASSERT_EQ(layout.plane_bytes() * width, expected) << layout.rows << " x " << layout.channels;
    }
  });
}

TEST(ColumnLayout, BlocksHoldAllRowsInWholeWords) {
  for_layouts([](const Layout& layout) {
    int64_t rows = 0;
    for (int64_t block = 0; block < layout.blocks(); ++block) {
      const int64_t octets = layout.block_octets(block);
      ASSERT_GT(layout.block_rows(block), 0);
      ASSERT_EQ(octets % kWordOctets, 0);
      ASSERT_GE(octets * kOctet, layout.block_rows(block));
      ASSERT_LT(octets * kOctet - layout.block_rows(block), kWordRows);
      rows += layout.block_rows(block);
    }
    ASSERT_EQ(rows, layout.rows);
  });
}

TEST(ColumnLayout, CodesAndMasksFollowTheParameters) {
  for_layouts([](Layout layout) {
    layout.masks = 2;
    for (layout.bits = 0; layout.bits <= kMaxBits; ++layout.bits) {
      const int64_t groups = layout.bits == 0 ? 0 : layout.blocks() * layout.channels;
      ASSERT_EQ(layout.groups(), groups);
      ASSERT_EQ(layout.codes() % kCodesAlignment, 0);
      ASSERT_GE(layout.codes(), kHeaderBytes + groups * static_cast<int64_t>(sizeof(GroupParameters)));
      ASSERT_EQ(layout.mask(0), layout.codes() + layout.plane_bytes() * layout.bits);
      ASSERT_EQ(layout.mask(1), layout.mask(0) + layout.plane_bytes());
      ASSERT_EQ(layout.bytes(), layout.mask(1) + layout.plane_bytes());
    }
  });
}

TEST(ColumnLayout, SizesByHand) {
  // 3 blocks of 2 channels: 6 groups; 300 rows are 10 words.
  const Layout layout{.rows = 300, .channels = 2, .group_rows = 128, .bits = 4, .masks = 1};
  EXPECT_EQ(layout.codes(), 16 + 32);
  EXPECT_EQ(layout.plane_bytes(), 10 * 4 * 2);
  EXPECT_EQ(layout.bytes(), 16 + 32 + 5 * 80);
  EXPECT_EQ(layout.block_rows(2), 44);
  EXPECT_EQ(layout.block_octets(2), 8);
  EXPECT_EQ(layout.group_offset(2, 1, 4), (2 * 16 * 2 + 8) * 4);
}

TEST(ColumnLayout, EveryOctetHasNoiseOfItsOwnAndNeighboursShareABlock) {
  for (const int64_t channels : kChannels) {
    const Layout layout{.rows = 256, .channels = channels};
    std::set<uint64_t> numbers;
    for (int64_t octet = 0; octet < 32; ++octet) {
      for (int64_t channel = 0; channel < channels; ++channel) {
        const uint64_t number = layout.noise_octet(octet, channel);
        EXPECT_TRUE(numbers.insert(number).second) << channels << " channels";
        EXPECT_EQ(number % 2, static_cast<uint64_t>(channel % 2));
        EXPECT_EQ(number / 2, static_cast<uint64_t>(octet * ((channels + 1) / 2) + channel / 2));
      }
    }
  }
}

TEST(ColumnLayout, NoiseDependsOnNeitherBitsNorGroups) {
  const Layout a{.rows = 700, .channels = 5, .group_rows = 64, .bits = 2};
  const Layout b{.rows = 700, .channels = 5, .group_rows = 256, .bits = 7, .masks = 1};
  for (int64_t octet = 0; octet < 88; ++octet) {
    EXPECT_EQ(a.noise_octet(octet, 3), b.noise_octet(octet, 3));
  }
}

TEST(ColumnLayout, HoldsBeyondTwoToTheThirtyOneElements) {
  const Layout layout{.rows = int64_t{1} << 22, .channels = 1024, .bits = 8};
  EXPECT_EQ(layout.plane_bytes(), (int64_t{1} << 32) / 8);
  EXPECT_EQ(layout.group_offset(layout.blocks() - 1, 1023, 8), (int64_t{1} << 32) - 256);
}

}  // namespace
}  // namespace actnn
