#include "actnn/ops/pack_codes.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

namespace actnn {
namespace {

//     sample 0, 2 bits             sample 1, 3 bits
//     code   3 2 1 0 | 7 6 5 4     the octet of core/bit_packing.h
TEST(PackCodes, SamplesFollowEachOtherWithoutGaps) {
  const at::Tensor codes = at::tensor({0, 1, 2, 3, 3, 2, 1, 0, 7, 0, 0, 0, 0, 0, 0, 5}, at::kByte).view({2, 8});
  const at::Tensor bits = at::tensor({2, 3}, at::kByte);
  const at::Tensor packed = pack_codes(codes, bits, 5);
  const at::Tensor expected = at::tensor({0b11100100, 0b00011011, 0b00000111, 0, 0b10100000}, at::kByte);
  EXPECT_TRUE(at::equal(packed, expected)) << packed;
  EXPECT_TRUE(at::equal(unpack_codes(packed, bits, 8), codes));
}

TEST(PackCodes, AShortLastOctetIsFilledWithZeros) {
  const at::Tensor codes = at::tensor({1, 1, 1}, at::kByte).view({1, 3});
  const at::Tensor bits = at::tensor({4}, at::kByte);
  const at::Tensor packed = pack_codes(codes, bits, 4);
  EXPECT_TRUE(at::equal(packed, at::tensor({0x11, 0x01, 0, 0}, at::kByte))) << packed;
  EXPECT_TRUE(at::equal(unpack_codes(packed, bits, 3), codes));
}

TEST(PackCodes, RoomThatDoesNotFitTheBitsIsRefused) {
  const at::Tensor codes = at::tensor({1, 1, 1}, at::kByte).view({1, 3});
  EXPECT_THROW(pack_codes(codes, at::tensor({4}, at::kByte), 3), c10::ValueError);
  EXPECT_THROW(unpack_codes(codes.flatten(), at::tensor({4}, at::kByte), 3), c10::ValueError);
}

}  // namespace
}  // namespace actnn
