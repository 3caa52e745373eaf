#include "actnn/cuda/cast.h"

#include <algorithm>
#include <memory>

#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;

/// Values of a type, as floats.
std::vector<float> values_of(const std::vector<uint8_t>& elements, ElementType type) {
  return with_element_type(type, [&]<class Element>(Element /*tag*/) {
    std::vector<Element> typed(elements.size() / sizeof(Element));
    std::memcpy(typed.data(), elements.data(), elements.size());
    std::vector<float> values(typed.size());
    std::transform(typed.begin(), typed.end(), values.begin(), [](Element element) { return to_float(element); });
    return values;
  });
}

/// All NaNs are one.
std::vector<uint32_t> bits_of_all(const std::vector<float>& values) {
  std::vector<uint32_t> bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(),
                 [](float value) { return bits_of(with_canonical_nan(value)); });
  return bits;
}

class Casts : public GpuTest {};

TEST_F(Casts, RoundEachElementOfEachArray) {
  // More arrays than a launch takes, of sizes that end anywhere in a block of 2048 elements.
  std::vector<int64_t> counts;
  for (int64_t i = 0; i < 100; ++i) {
    counts.push_back(i % 10 == 9 ? 2041 + i : i);
  }
  counts.insert(counts.end(), {0, 2048, 4096, 100001});
  for (const ElementType from : kElementTypes) {
    for (const ElementType to : kElementTypes) {
      for (const size_t offset : {0, 1, 8}) {
        std::vector<std::unique_ptr<GpuBytes>> arrays;
        std::vector<std::vector<uint8_t>> expected;
        std::vector<Cast> casts;
        for (const int64_t count : counts) {
          const std::vector<uint8_t> elements =
              as_elements(random_values(count, static_cast<uint32_t>(count), true), from);
          expected.push_back(as_elements(values_of(elements, from), to));
          arrays.push_back(std::make_unique<GpuBytes>(elements, offset * static_cast<size_t>(element_size(from))));
          arrays.push_back(
              std::make_unique<GpuBytes>(expected.back().size(), offset * static_cast<size_t>(element_size(to))));
          casts.push_back({arrays[arrays.size() - 2]->as<void>(), arrays.back()->as<void>(), count});
        }
        check(cast_arrays(casts, from, to, nullptr));
        for (size_t i = 0; i < counts.size(); ++i) {
          ASSERT_EQ(bits_of_all(values_of(arrays[2 * i + 1]->read(), to)), bits_of_all(values_of(expected[i], to)))
              << counts[i] << " of type " << static_cast<int>(from) << " to " << static_cast<int>(to) << " at "
              << offset;
        }
      }
    }
  }
}

TEST_F(Casts, OfNothingLaunchNothing) {
  check(cast_arrays({}, ElementType::kFloat32, ElementType::kBFloat16, nullptr));
}

}  // namespace
}  // namespace actnn::cuda
