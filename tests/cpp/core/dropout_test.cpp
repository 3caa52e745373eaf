#include "actnn/core/dropout.h"

#include <gtest/gtest.h>

#include <bit>

namespace actnn {
namespace {

TEST(DropoutScale, KeepsWordsBelowTheShareThatIsKept) {
  const DropoutScale quarter(0.75);
  EXPECT_EQ(quarter.apply(1.5F, 0x3FFFFFFF), 6.0F);
  EXPECT_EQ(quarter.apply(1.5F, 0x40000000), 0.0F);
}

TEST(DropoutScale, KeepsAllOrNothingAtTheEnds) {
  const DropoutScale all(0.0);
  const DropoutScale none(1.0);
  for (const uint32_t word : {0U, 0x80000000U, 0xFFFFFFFFU}) {
    EXPECT_EQ(all.apply(1.5F, word), 1.5F);
    EXPECT_EQ(std::bit_cast<uint32_t>(none.apply(-1.5F, word)), 0U);
  }
}

}  // namespace
}  // namespace actnn
