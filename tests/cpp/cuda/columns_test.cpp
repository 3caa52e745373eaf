#include "actnn/cuda/columns.h"

#include "actnn/cpu/columns.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using Layout = ColumnLayout<int64_t>;

struct Problem {
  ElementType type;
  Layout layout;
  Rounding rounding = Rounding::kDithered;
  bool special = false;  ///< with infinities and NaNs
  size_t offset = 0;     ///< elements of memory before the matrix

  size_t shift() const { return offset * static_cast<size_t>(element_size(type)); }
};

constexpr RandomState kRandom{.seed = 0x123456789ABCDEF0, .offset = 77};

std::vector<uint8_t> packed_by_cpu(const Problem& problem, const std::vector<uint8_t>& elements) {
  const Layout& layout = problem.layout;
  std::vector<uint8_t> packed(static_cast<size_t>(layout.bytes()));
  const PackedHeader header =
      PackedHeader::of(problem.rounding == Rounding::kNearest ? RandomState{} : kRandom, problem.rounding);
  std::memcpy(packed.data(), &header, sizeof header);
  cpu::quantize_columns({.elements = elements.data(),
                         .type = problem.type,
                         .layout = layout,
                         .parameters = packed.data() + kHeaderBytes,
                         .codes = packed.data() + layout.codes(),
                         .random = kRandom,
                         .rounding = problem.rounding},
                        0, cpu::column_pieces(layout));
  return packed;
}

std::vector<uint8_t> unpacked_by_cpu(const Problem& problem, const std::vector<uint8_t>& packed) {
  const Layout& layout = problem.layout;
  std::vector<uint8_t> elements(static_cast<size_t>(layout.rows * layout.channels * element_size(problem.type)));
  PackedHeader header{};
  std::memcpy(&header, packed.data(), sizeof header);
  cpu::dequantize_columns({.header = header,
                           .parameters = packed.data() + kHeaderBytes,
                           .codes = packed.data() + layout.codes(),
                           .layout = layout,
                           .type = problem.type,
                           .elements = elements.data()},
                          0, cpu::column_pieces(layout));
  return elements;
}

void compare(const Problem& problem) {
  const Layout& layout = problem.layout;
  SCOPED_TRACE(testing::Message() << layout.rows << " x " << layout.channels << ", " << layout.bits
                                  << " bits, groups of " << layout.group_rows << ", type "
                                  << static_cast<int>(problem.type) << ", offset " << problem.offset);
  const std::vector<uint8_t> elements = cpu::as_elements(
      cpu::random_values(layout.rows * layout.channels, static_cast<unsigned>(layout.rows), problem.special),
      problem.type);
  const std::vector<uint8_t> expected = packed_by_cpu(problem, elements);
  const GpuBytes x(elements, problem.shift());
  const GpuBytes packed(expected.size());
  check(quantize_columns({.elements = x.as<void>(),
                          .type = problem.type,
                          .layout = layout,
                          .packed = packed.as<uint8_t>(),
                          .random = {.shift = kRandom},
                          .rounding = problem.rounding},
                         nullptr));
  ASSERT_EQ(packed.read(), expected);
  const GpuBytes result(elements.size(), problem.shift());
  check(dequantize_columns(
      {.packed = packed.as<uint8_t>(), .layout = layout, .type = problem.type, .elements = result.as<void>()},
      nullptr));
  ASSERT_EQ(result.read(), unpacked_by_cpu(problem, expected));
}

using Columns = GpuTestOf<ElementType>;
INSTANTIATE_TEST_SUITE_P(All, Columns, testing::ValuesIn(cpu::kElementTypes));

TEST_P(Columns, AreThoseOfTheCpu) {
  for (const int64_t rows : {1, 5, 31, 33, 64, 255, 256, 257, 700}) {
    for (const int64_t channels : {1, 3, 8, 17, 40, 64, 100, 256}) {
      const int bits = static_cast<int>((rows + channels) % kMaxBits) + 1;
      compare({.type = GetParam(), .layout = {rows, channels, kDefaultGroupRows, bits, 0}});
    }
  }
}

TEST_P(Columns, HaveEveryWidthAndGroup) {
  for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
    for (const int64_t group_rows : {64, 128, 256}) {
      for (const Rounding rounding : {Rounding::kDithered, Rounding::kStochastic, Rounding::kNearest}) {
        compare({.type = GetParam(), .layout = {1000, 72, group_rows, bits, 0}, .rounding = rounding});
      }
      compare({.type = GetParam(), .layout = {300, 41, group_rows, bits, 0}, .special = true});
    }
  }
}

TEST_P(Columns, TakeMatricesLargerThanTheGridAndElementsThatBeginAnywhere) {
  compare({.type = GetParam(), .layout = {45'001, 136, kDefaultGroupRows, 4, 0}});
  for (const size_t offset : {1, 2, 4}) {
    compare({.type = GetParam(), .layout = {300, 48, kDefaultGroupRows, 3, 0}, .offset = offset});
  }
}

TEST_P(Columns, OfNothingAreAHeader) { compare({.type = GetParam(), .layout = {0, 8, kDefaultGroupRows, 4, 0}}); }

}  // namespace
}  // namespace actnn::cuda
