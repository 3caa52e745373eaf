#include "actnn/core/mask.h"

#include <gtest/gtest.h>

namespace actnn {
namespace {

TEST(Mask, GradientsPassWhereTheInputIsNotZeroOrBelow) {
  for (const float x : {1.0F, 1e-45F, float_of(kInfinityFloat32), float_of(kNanFloat32), float_of(0xFFC00000)}) {
    EXPECT_TRUE(gradient_passes(x)) << x;
    EXPECT_EQ(bits_of(rectified(x)), bits_of(x)) << x;
  }
  for (const float x : {-1.0F, -1e-45F, -float_of(kInfinityFloat32)}) {
    EXPECT_FALSE(gradient_passes(x)) << x;
    EXPECT_EQ(bits_of(rectified(x)), 0U) << x;
  }
  for (const float x : {0.0F, -0.0F}) {
    EXPECT_FALSE(gradient_passes(x));
    EXPECT_EQ(bits_of(rectified(x)), bits_of(x));
  }
}

}  // namespace
}  // namespace actnn
