#include "actnn/cpu/mask.h"

#include <gtest/gtest.h>

#include "actnn/core/layout.h"
#include "test_data.h"

namespace actnn::cpu {
namespace {

constexpr int64_t kCounts[] = {0, 1, 7, 8, 9, 63, 64, 65, 128, 511, 1000};

TEST(Mask, RoundTripsForEveryCount) {
  std::mt19937 random(1);
  for (const int64_t count : kCounts) {
    std::vector<uint8_t> bools(static_cast<size_t>(count));
    for (uint8_t& value : bools) {
      value = static_cast<uint8_t>(random() % 2 * (1 + random() % 255));  // any byte but 0 is true
    }
    std::vector<uint8_t> mask(static_cast<size_t>(mask_bytes(count)), 0xFF);
    pack_mask(bools.data(), count, mask.data(), 0, mask_bytes(count));
    std::vector<uint8_t> back(bools.size(), 0xFF);
    unpack_mask(mask.data(), count, back.data(), 0, mask_bytes(count));
    for (size_t i = 0; i < bools.size(); ++i) {
      EXPECT_EQ(back[i], bools[i] != 0 ? 1 : 0);
      EXPECT_EQ((mask[i / 8] >> (i % 8)) & 1, bools[i] != 0 ? 1 : 0);
    }
    if (count % 8 != 0) {
      EXPECT_EQ(mask.back() >> (count % 8), 0);
    }
  }
}

TEST(Relu, IsTheSameOnAllTargetsAndPassesNan) {
  for (const ElementType type : kElementTypes) {
    for (const int64_t count : kCounts) {
      const std::vector<uint8_t> input = as_elements(random_values(count, 3, true), type);
      const int64_t octets = mask_bytes(count);
      std::vector<uint8_t> expected(input.size());
      std::vector<uint8_t> expected_mask(static_cast<size_t>(octets));
      reference::relu(input.data(), type, count, expected.data(), expected_mask.data(), 0, octets);
      with_element_type(type, [&]<class Element>(Element /*tag*/) {
        for (int64_t i = 0; i < count; ++i) {
          Element x;
          Element y;
          std::memcpy(&x, input.data() + i * static_cast<int64_t>(sizeof x), sizeof x);
          std::memcpy(&y, expected.data() + i * static_cast<int64_t>(sizeof y), sizeof y);
          const bool passes = ((expected_mask[static_cast<size_t>(i / 8)] >> (i % 8)) & 1) != 0;
          EXPECT_EQ(passes, is_nan(to_float(x)) || to_float(x) > 0.0F);
          EXPECT_TRUE(is_nan(to_float(x)) ? is_nan(to_float(y)) : to_float(y) == std::max(to_float(x), 0.0F));
        }
      });
      for_targets([&](const std::string& target) {
        std::vector<uint8_t> output = input;  // in place
        std::vector<uint8_t> mask(static_cast<size_t>(octets), 0xFF);
        const int64_t middle = octets / 3;
        relu(output.data(), type, count, output.data(), mask.data(), middle, octets);
        relu(output.data(), type, count, output.data(), mask.data(), 0, middle);
        EXPECT_EQ(output, expected) << target << ", count " << count;
        EXPECT_EQ(mask, expected_mask) << target << ", count " << count;
      });
    }
  }
}

TEST(ApplyMask, IsTheSameOnAllTargets) {
  std::mt19937 random(5);
  for (const ElementType type : kElementTypes) {
    for (const int64_t count : kCounts) {
      const std::vector<uint8_t> input = as_elements(random_values(count, 4, true), type);
      const int64_t octets = mask_bytes(count);
      std::vector<uint8_t> mask(static_cast<size_t>(octets));
      for (uint8_t& byte : mask) {
        byte = static_cast<uint8_t>(random());
      }
      std::vector<uint8_t> expected(input.size());
      const auto size = static_cast<size_t>(element_size(type));
      for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
        if (((mask[i / 8] >> (i % 8)) & 1) != 0) {
          std::memcpy(expected.data() + i * size, input.data() + i * size, size);
        }
      }
      for_targets([&](const std::string& target) {
        std::vector<uint8_t> output(input.size(), 0xFF);
        const int64_t middle = octets / 2;
        apply_mask(input.data(), type, count, mask.data(), output.data(), 0, middle);
        apply_mask(input.data(), type, count, mask.data(), output.data(), middle, octets);
        EXPECT_EQ(output, expected) << target << ", count " << count;
      });
    }
  }
}

}  // namespace
}  // namespace actnn::cpu
