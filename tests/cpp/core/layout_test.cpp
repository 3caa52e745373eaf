#include "actnn/core/layout.h"

#include <gtest/gtest.h>

#include <limits>

namespace actnn {
namespace {

TEST(Layout, CountsGroupsWithAShortLastOne) {
  EXPECT_EQ(group_count<int64_t>(0, 256), 0);
  EXPECT_EQ(group_count<int64_t>(1, 256), 1);
  EXPECT_EQ(group_count<int64_t>(256, 256), 1);
  EXPECT_EQ(group_count<int64_t>(257, 256), 2);
}

TEST(Layout, SizesOfPackedActivations) {
  EXPECT_EQ(packed_bytes<int64_t>(0, 2, 256), 16);                // the header alone
  EXPECT_EQ(packed_bytes<int64_t>(1, 2, 256), 16 + 16 + 2);       // one group, one octet
  EXPECT_EQ(packed_bytes<int64_t>(1024, 2, 256), 16 + 16 + 256);  // four groups fill the 16 bytes
  EXPECT_EQ(packed_bytes<int64_t>(1025, 3, 256), 16 + 32 + 387);  // a fifth group, and 129 octets
  EXPECT_EQ(mask_bytes<int64_t>(9), 2);
}

TEST(Layout, HoldsBeyondTwoToTheThirtyOneElements) {
  const int64_t elements = 3 * (int64_t{1} << 31);
  EXPECT_EQ(packed_bytes<int64_t>(elements, 8, 256), 16 + elements / 64 + elements);
}

TEST(Layout, AlignsUp) {
  EXPECT_EQ(align_up<int64_t>(0, 16), 0);
  EXPECT_EQ(align_up<int64_t>(1, 16), 16);
  EXPECT_EQ(align_up<int64_t>(16, 16), 16);
}

TEST(Layout, CodesBeginAtMultiplesOfSixteenBytes) {
  for (int64_t groups = 0; groups < 10; ++groups) {
    EXPECT_EQ(codes_offset(groups) % kCodesAlignment, 0);
    EXPECT_GE(codes_offset(groups), kHeaderBytes + 4 * groups);
    EXPECT_LT(codes_offset(groups), kHeaderBytes + 4 * groups + kCodesAlignment);
  }
}

TEST(Layout, SamplesBeginAtWholePhiloxBlocks) {
  EXPECT_EQ(first_octet_of_sample(0, 100), 0u);
  EXPECT_EQ(first_octet_of_sample(3, 16), 6u);   // two octets a sample
  EXPECT_EQ(first_octet_of_sample(3, 17), 12u);  // three, rounded up to four
  EXPECT_EQ(first_octet_of_sample(3, 1), 6u);
  EXPECT_EQ(first_octet_of_sample(5, 0), 0u);
  const int64_t elements = int64_t{1} << 33;
  EXPECT_EQ(first_octet_of_sample(1 << 10, elements), uint64_t{1} << 40);
}

TEST(Header, KeepsTheRandomState) {
  for (const Rounding rounding : {Rounding::kDithered, Rounding::kStochastic, Rounding::kNearest}) {
    const PackedHeader header = PackedHeader::of({0xFEDCBA9876543210, 77}, rounding);
    EXPECT_EQ(header.random().seed, 0xFEDCBA9876543210);
    EXPECT_EQ(header.random().offset, 77u);
    EXPECT_EQ(header.dithered(), rounding == Rounding::kDithered);
  }
}

TEST(Header, TheOffsetsSignIsNotPartOfTheState) {
  constexpr uint64_t kLargest = std::numeric_limits<uint64_t>::max();
  EXPECT_TRUE(PackedHeader::of({1, kLargest}, Rounding::kDithered).dithered());
  EXPECT_EQ(PackedHeader::of({1, kLargest}, Rounding::kNearest).random().offset, kLargest >> 1);
}

}  // namespace
}  // namespace actnn
