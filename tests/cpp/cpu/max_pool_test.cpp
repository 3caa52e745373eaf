#include "actnn/cpu/max_pool.h"

#include <gtest/gtest.h>

#include "test_data.h"

namespace actnn::cpu {
namespace {

/// Sizes small enough to check by brute force.
MaxPool2dShape shape_of(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool channels_last) {
  const int64_t height = 11;
  const int64_t width = 9;
  const int64_t reach = dilation * (kernel - 1) + 1;
  return {2,
          3,
          height,
          width,
          (height + 2 * padding - reach) / stride + 1,
          (width + 2 * padding - reach) / stride + 1,
          kernel,
          kernel,
          stride,
          stride,
          padding,
          padding,
          dilation,
          dilation,
          channels_last};
}

int64_t offset(const MaxPool2dShape& s, int64_t n, int64_t c, int64_t y, int64_t x, bool output) {
  const int64_t height = output ? s.output_height : s.input_height;
  const int64_t width = output ? s.output_width : s.input_width;
  return s.channels_last ? ((n * height + y) * width + x) * s.channels + c
                         : ((n * s.channels + c) * height + y) * width + x;
}

TEST(MaxPool, FindsEveryMaximumAndItsPosition) {
  for (const bool channels_last : {false, true}) {
    for (const auto& [kernel, stride, padding, dilation] :
         {std::tuple{2, 2, 0, 1}, {3, 2, 1, 1}, {3, 1, 1, 2}, {1, 1, 0, 1}, {5, 3, 2, 1}}) {
      const MaxPool2dShape s = shape_of(kernel, stride, padding, dilation, channels_last);
      const int64_t inputs = s.batch * s.channels * s.input_height * s.input_width;
      const int64_t outputs = s.batch * s.channels * s.output_height * s.output_width;
      const std::vector<float> values = random_values(inputs, 6, false);
      std::vector<float> output(static_cast<size_t>(outputs));
      std::vector<uint8_t> positions(static_cast<size_t>(outputs));
      std::vector<int64_t> indices(static_cast<size_t>(outputs));
      const int64_t items = max_pool2d_items(s);
      max_pool2d(s, ElementType::kFloat32, values.data(), output.data(), positions.data(), 0, items);
      max_pool2d_indices(s, positions.data(), indices.data(), 0, items);

      std::vector<float> grad(static_cast<size_t>(outputs), 1.0F);
      std::vector<float> grad_input(static_cast<size_t>(inputs));
      std::vector<float> expected_grad(static_cast<size_t>(inputs));
      max_pool2d_backward(s, ElementType::kFloat32, grad.data(), positions.data(), grad_input.data(), 0,
                          max_pool2d_backward_items(s));
      for (int64_t n = 0; n < s.batch; ++n) {
        for (int64_t c = 0; c < s.channels; ++c) {
          for (int64_t y = 0; y < s.output_height; ++y) {
            for (int64_t x = 0; x < s.output_width; ++x) {
              float maximum = 0.0F;
              int64_t best = -1;
              for (int64_t i = 0; i < kernel * kernel; ++i) {
                const int64_t row = y * stride - padding + i / kernel * dilation;
                const int64_t column = x * stride - padding + i % kernel * dilation;
                if (row < 0 || row >= s.input_height || column < 0 || column >= s.input_width) {
                  continue;
                }
                const float value = values[static_cast<size_t>(offset(s, n, c, row, column, false))];
                if (best < 0 || value > maximum) {
                  maximum = value;
                  best = row * s.input_width + column;
                }
              }
              const auto out = static_cast<size_t>(offset(s, n, c, y, x, true));
              EXPECT_EQ(output[out], maximum);
              EXPECT_EQ(indices[out], best);
              expected_grad[static_cast<size_t>(offset(s, n, c, best / s.input_width, best % s.input_width, false))] +=
                  1.0F;
            }
          }
        }
      }
      EXPECT_EQ(grad_input, expected_grad);
    }
  }
}

TEST(MaxPool, GivesMinusInfinityAndNoGradientWhereAWindowMissesTheInput) {
  for (const bool channels_last : {false, true}) {
    const MaxPool2dShape s{1, 2, 1, 1, 1, 1, 2, 2, 1, 1, 2, 2, 4, 4, channels_last};
    const std::vector<float> values = {1.0F, 2.0F};
    std::vector<float> output(2);
    std::vector<uint8_t> positions(2);
    max_pool2d(s, ElementType::kFloat32, values.data(), output.data(), positions.data(), 0, max_pool2d_items(s));
    EXPECT_EQ(output, (std::vector<float>(2, -float_of(kInfinityFloat32))));
    std::vector<float> grad_input(2);
    max_pool2d_backward(s, ElementType::kFloat32, values.data(), positions.data(), grad_input.data(), 0,
                        max_pool2d_backward_items(s));
    EXPECT_EQ(grad_input, std::vector<float>(2));
  }
}

}  // namespace
}  // namespace actnn::cpu
