#include "actnn/core/layout.h"

#include <gtest/gtest.h>

namespace actnn {
namespace {

TEST(Layout, CountsGroupsWithAShortLastOne) {
  EXPECT_EQ(group_count<int64_t>(0, 256), 0);
  EXPECT_EQ(group_count<int64_t>(1, 256), 1);
  EXPECT_EQ(group_count<int64_t>(256, 256), 1);
  EXPECT_EQ(group_count<int64_t>(257, 256), 2);
}

TEST(Layout, SizesOfPackedActivations) {
  EXPECT_EQ(packed_bytes<int64_t>(0, 2, 256), 0);
  EXPECT_EQ(packed_bytes<int64_t>(1, 2, 256), 16 + 2);       // one group, one octet
  EXPECT_EQ(packed_bytes<int64_t>(1024, 2, 256), 16 + 256);  // four groups fill the 16 bytes
  EXPECT_EQ(packed_bytes<int64_t>(1025, 3, 256), 32 + 387);  // a fifth group, and 129 octets
  EXPECT_EQ(mask_bytes<int64_t>(9), 2);
}

TEST(Layout, HoldsBeyondTwoToTheThirtyOneElements) {
  const int64_t elements = 3 * (int64_t{1} << 31);
  EXPECT_EQ(packed_bytes<int64_t>(elements, 8, 256), elements / 64 + elements);
}

TEST(Layout, AlignsUp) {
  EXPECT_EQ(align_up<int64_t>(0, 16), 0);
  EXPECT_EQ(align_up<int64_t>(1, 16), 16);
  EXPECT_EQ(align_up<int64_t>(16, 16), 16);
}

}  // namespace
}  // namespace actnn
