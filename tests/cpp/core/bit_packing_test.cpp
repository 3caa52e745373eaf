#include "actnn/core/bit_packing.h"

#include <gtest/gtest.h>

#include <random>

namespace actnn {
namespace {

uint64_t random_codes(std::mt19937_64& random, int bits) {
  uint64_t codes = 0;
  for (int k = 0; k < 8; ++k) {
    codes |= (random() & ((uint64_t{1} << bits) - 1)) << (8 * k);
  }
  return codes;
}

/// The definition: code k in bits [k * b, (k + 1) * b).
uint64_t pack_by_definition(uint64_t codes, int bits) {
  uint64_t packed = 0;
  for (int k = 0; k < 8; ++k) {
    packed |= ((codes >> (8 * k)) & 0xFF) << (k * bits);
  }
  return packed;
}

class BitPacking : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Bits, BitPacking, testing::Range(kMinBits, kMaxBits + 1));

TEST_P(BitPacking, FollowsTheDiagram) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t codes = random_codes(random, GetParam());
    EXPECT_EQ(pack_octet(codes, OctetSteps(GetParam())), pack_by_definition(codes, GetParam()));
  }
}

TEST_P(BitPacking, RoundTripsAndIgnoresBitsAboveTheOctet) {
  std::mt19937_64 random(2);
  const int bits = GetParam();
  for (int i = 0; i < 1000; ++i) {
    const uint64_t codes = random_codes(random, bits);
    const uint64_t above = bits == 8 ? 0 : random() << (8 * bits);
    EXPECT_EQ(unpack_octet(pack_octet(codes, OctetSteps(bits)) | above, OctetSteps(bits)), codes);
  }
}

}  // namespace
}  // namespace actnn
