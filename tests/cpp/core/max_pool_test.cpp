#include "actnn/core/max_pool.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace actnn {
namespace {

/// Axes with and without padding, gaps between windows, dilation, and windows that miss the input.
const std::vector<WindowAxis<int64_t>> kAxes = {
    {.input = 11, .output = 5, .kernel = 2, .stride = 2, .padding = 0, .dilation = 1},
    {.input = 11, .output = 6, .kernel = 3, .stride = 2, .padding = 1, .dilation = 1},
    {.input = 8, .output = 3, .kernel = 2, .stride = 3, .padding = 0, .dilation = 1},
    {.input = 9, .output = 7, .kernel = 3, .stride = 1, .padding = 1, .dilation = 2},
    {.input = 1, .output = 1, .kernel = 2, .stride = 1, .padding = 2, .dilation = 4},
};

/// The rows of a window that lie in the input, by their numbers in the window.
std::vector<std::pair<int64_t, int64_t>> elements_of(const WindowAxis<int64_t>& axis, int64_t index) {
  std::vector<std::pair<int64_t, int64_t>> elements;
  for (int64_t offset = 0; offset < axis.kernel; ++offset) {
    const int64_t row = axis.row(index, offset);
    if (row >= 0 && row < axis.input) {
      elements.emplace_back(offset, row);
    }
  }
  return elements;
}

TEST(WindowAxis, SpansTheElementsThatLieInTheInput) {
  for (const WindowAxis<int64_t>& axis : kAxes) {
    for (int64_t index = 0; index < axis.output; ++index) {
      std::vector<std::pair<int64_t, int64_t>> spanned;
      const WindowSpan<int64_t> span = axis.span(index);
      int64_t offset = span.skipped;
      for (int64_t row = span.first; row < span.end; row += axis.dilation, ++offset) {
        spanned.emplace_back(offset, row);
      }
      const auto elements = elements_of(axis, index);
      EXPECT_EQ(spanned, elements);
      EXPECT_EQ(axis.is_inside(index), elements.size() == static_cast<size_t>(axis.kernel));
      EXPECT_LT(span.skipped, axis.kernel);
    }
  }
}

TEST(WindowAxis, FindsTheWindowsOfAnElement) {
  for (const WindowAxis<int64_t>& axis : kAxes) {
    std::vector<std::set<int64_t>> windows(static_cast<size_t>(axis.input));
    for (int64_t index = 0; index < axis.output; ++index) {
      for (const auto& [offset, row] : elements_of(axis, index)) {
        windows[static_cast<size_t>(row)].insert(index);
      }
    }
    for (int64_t row = 0; row < axis.input; ++row) {
      for (const int64_t index : windows[static_cast<size_t>(row)]) {
        EXPECT_GE(index, axis.first_output(row));
        EXPECT_LE(index, axis.last_output(row));
      }
      for (int64_t index = 0; index < axis.output; ++index) {
        const int64_t offset = axis.offset(index, row);
        EXPECT_EQ(offset >= 0, windows[static_cast<size_t>(row)].contains(index));
        EXPECT_TRUE(offset < 0 || axis.row(index, offset) == row);
      }
      EXPECT_GE(axis.first_output(row), 0);
      EXPECT_LT(axis.last_output(row), axis.output);
    }
  }
}

TEST(MaxPool, ComparesLikeTorch) {
  const float nan = float_of(kNanFloat32);
  EXPECT_TRUE(takes_over(2.0F, 1.0F));
  EXPECT_FALSE(takes_over(1.0F, 1.0F));
  EXPECT_FALSE(takes_over(0.0F, -0.0F));
  EXPECT_TRUE(takes_over(nan, 1.0F));
  EXPECT_TRUE(takes_over(nan, nan));
  EXPECT_FALSE(takes_over(1.0F, nan));
}

TEST(MaxPool, AddsInTheElementType) {
  EXPECT_EQ(add_rounded(BFloat16{0x4380}, BFloat16{0x3F80}).bits, 0x4380);  // 256 + 1: halfway, to even
  EXPECT_EQ(add_rounded(Float16{0x7BFF}, Float16{0x7BFF}).bits, 0x7C00);
  const float infinity = float_of(kInfinityFloat32);
  EXPECT_EQ(bits_of(add_rounded(infinity, -infinity)), kNanFloat32);
  EXPECT_EQ(add_rounded(Float16{0xFE01}, Float16{}).bits, kNanFloat16);
  EXPECT_EQ(bits_of(add_rounded(0.0F, -0.0F)), 0U);
}

TEST(MaxPool, PositionsTakeAsManyBytesAsTheWindowNeeds) {
  EXPECT_EQ(position_bytes(16, 16), 1);
  EXPECT_EQ(position_bytes(1, 257), 2);
  EXPECT_EQ(position_bytes(257, 257), 4);
}

}  // namespace
}  // namespace actnn
