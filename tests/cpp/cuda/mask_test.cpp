#include "actnn/cuda/mask.h"

#include "actnn/core/layout.h"
#include "actnn/cpu/mask.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;

constexpr int64_t kCounts[] = {0, 1, 7, 8, 9, 31, 63, 64, 65, 511, 1000, 8192, 9301};
constexpr size_t kOffsets[] = {0, 1, 2, 3, 4, 8};  // in elements

std::vector<uint8_t> random_bytes(size_t count) {
  std::mt19937 random(5);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) {
    byte = static_cast<uint8_t>(random());
  }
  return bytes;
}

class Masks : public GpuTest {};

TEST_F(Masks, ArePackedAsOnTheCpuAndUnpacked) {
  for (const int64_t count : kCounts) {
    for (const size_t offset : kOffsets) {
      std::vector<uint8_t> bools = random_bytes(static_cast<size_t>(count));
      for (uint8_t& value : bools) {
        value = value < 128 ? 0 : value;  // any byte but 0 is true
      }
      std::vector<uint8_t> expected(static_cast<size_t>(mask_bytes(count)));
      cpu::pack_mask(bools.data(), count, expected.data(), 0, mask_bytes(count));
      const GpuBytes input(bools, offset);
      const GpuBytes mask(expected.size(), offset);
      check(pack_mask(input.as<uint8_t>(), count, mask.as<uint8_t>(), nullptr));
      ASSERT_EQ(mask.read(), expected) << count << " at " << offset;
      const GpuBytes output(bools.size(), offset);
      check(unpack_mask(mask.as<uint8_t>(), count, output.as<uint8_t>(), nullptr));
      for (uint8_t& value : bools) {
        value = value != 0 ? 1 : 0;
      }
      ASSERT_EQ(output.read(), bools) << count << " at " << offset;
    }
  }
}

using Relu = GpuTestOf<ElementType>;
INSTANTIATE_TEST_SUITE_P(All, Relu, testing::ValuesIn(kElementTypes));

TEST_P(Relu, GivesTheValuesAndTheMaskOfTheCpu) {
  const ElementType type = GetParam();
  for (const int64_t count : kCounts) {
    const std::vector<uint8_t> elements = as_elements(random_values(count, 3, true), type);
    std::vector<uint8_t> expected(elements.size());
    std::vector<uint8_t> expected_mask(static_cast<size_t>(mask_bytes(count)));
    cpu::reference::relu(elements.data(), type, count, expected.data(), expected_mask.data(), 0, mask_bytes(count));
    for (const size_t offset : kOffsets) {
      const size_t bytes = offset * static_cast<size_t>(element_size(type));
      const GpuBytes input(elements, bytes);
      const GpuBytes output(elements.size(), bytes);
      const GpuBytes mask(expected_mask.size(), offset);
      check(relu(input.as<void>(), type, count, output.as<void>(), mask.as<uint8_t>(), nullptr));
      ASSERT_EQ(output.read(), expected) << count << " at " << offset;
      ASSERT_EQ(mask.read(), expected_mask) << count << " at " << offset;
      check(relu(input.as<void>(), type, count, input.as<void>(), mask.as<uint8_t>(), nullptr));
      ASSERT_EQ(input.read(), expected) << "in place, " << count << " at " << offset;
    }
  }
}

TEST_P(Relu, MasksGradientsAsTheCpuDoes) {
  const ElementType type = GetParam();
  for (const int64_t count : kCounts) {
    const std::vector<uint8_t> elements = as_elements(random_values(count, 4, true), type);
    const std::vector<uint8_t> bits = random_bytes(static_cast<size_t>(mask_bytes(count)));
    std::vector<uint8_t> expected(elements.size());
    cpu::reference::apply_mask(elements.data(), type, count, bits.data(), expected.data(), 0, mask_bytes(count));
    for (const size_t offset : kOffsets) {
      const size_t bytes = offset * static_cast<size_t>(element_size(type));
      const GpuBytes input(elements, bytes);
      const GpuBytes output(elements.size(), bytes);
      const GpuBytes mask(bits, offset);
      check(apply_mask(input.as<void>(), type, count, mask.as<uint8_t>(), output.as<void>(), nullptr));
      ASSERT_EQ(output.read(), expected) << count << " at " << offset;
      check(apply_mask(input.as<void>(), type, count, mask.as<uint8_t>(), input.as<void>(), nullptr));
      ASSERT_EQ(input.read(), expected) << "in place, " << count << " at " << offset;
    }
  }
}

}  // namespace
}  // namespace actnn::cuda
