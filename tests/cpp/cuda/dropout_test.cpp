#include "actnn/cuda/dropout.h"

#include "actnn/core/layout.h"
#include "actnn/cpu/dropout.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;

constexpr RandomState kState{0xFEDCBA9876543210, 0xFFFFFFFF};

std::vector<uint8_t> expected_elements(const std::vector<uint8_t>& input, ElementType type, int64_t count,
                                       double probability) {
  std::vector<uint8_t> output(input.size());
  cpu::reference::dropout({.input = input.data(),
                           .type = type,
                           .count = count,
                           .probability = probability,
                           .random = kState,
                           .output = output.data()},
                          0, ceil_div(count, kDropoutQuad));
  return output;
}

using Dropout = GpuTestOf<ElementType>;
INSTANTIATE_TEST_SUITE_P(All, Dropout, testing::ValuesIn(kElementTypes));

TEST_P(Dropout, GivesTheValuesOfTheCpu) {
  const ElementType type = GetParam();
  for (const int64_t count : {0, 1, 3, 4, 63, 65, 1000, 8192, 9301}) {
    const std::vector<uint8_t> elements = as_elements(random_values(count, 8, true), type);
    for (const double probability : {0.0, 1e-9, 0.1, 0.5, 0.999, 1.0}) {
      const std::vector<uint8_t> expected = expected_elements(elements, type, count, probability);
      for (const size_t offset : {0, 1, 2, 3, 8}) {
        const size_t bytes = offset * static_cast<size_t>(element_size(type));
        const GpuBytes input(elements, bytes);
        const GpuBytes output(elements.size(), bytes);
        DropoutArguments arguments{.input = input.as<void>(),
                                   .type = type,
                                   .count = count,
                                   .probability = probability,
                                   .random = {.shift = kState},
                                   .output = output.as<void>(),
                                   .used_state = nullptr};
        check(dropout(arguments, nullptr));
        ASSERT_EQ(output.read(), expected) << count << " at " << offset << ", probability " << probability;
        arguments.output = input.as<void>();
        check(dropout(arguments, nullptr));
        ASSERT_EQ(input.read(), expected) << "in place, " << count << " at " << offset;
      }
    }
  }
}

TEST_P(Dropout, SaysWhichStateItUsed) {
  const ElementType type = GetParam();
  for (const int64_t count : {0, 1, 5000}) {
    const std::vector<uint8_t> elements = as_elements(random_values(count, 8, false), type);
    const GpuBytes input(elements);
    const GpuArray<int64_t> state(std::vector<int64_t>{static_cast<int64_t>(kState.seed ^ 5), 3});
    const GpuArray<int64_t> used(2);
    check(dropout({.input = input.as<void>(),
                   .type = type,
                   .count = count,
                   .probability = 0.5,
                   .random = {.seed = state.data(), .offset = state.data() + 1, .shift = {5, kState.offset - 3}},
                   .output = input.as<void>(),
                   .used_state = used.data()},
                  nullptr));
    EXPECT_EQ(used.read(),
              (std::vector<int64_t>{static_cast<int64_t>(kState.seed), static_cast<int64_t>(kState.offset)}));
    EXPECT_EQ(input.read(), expected_elements(elements, type, count, 0.5));
  }
}

}  // namespace
}  // namespace actnn::cuda
