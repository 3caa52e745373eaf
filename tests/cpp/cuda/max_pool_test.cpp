#include "actnn/cuda/max_pool.h"

#include <cmath>

#include "actnn/cpu/max_pool.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;

/// Along one axis; the other has one more column, a kernel that is wider or not, and the same for the rest.
struct Window {
  int64_t input, kernel, stride, padding, dilation;
  int64_t channels = 5;
  int64_t wider = 1;

  static int64_t output(int64_t input, int64_t kernel, const Window& w) {
    return (input + 2 * w.padding - w.dilation * (kernel - 1) - 1) / w.stride + 1;
  }

  MaxPool2dShape shape(bool channels_last) const {
    return {.batch = 2,
            .channels = channels,
            .input_height = input,
            .input_width = input + 1,
            .output_height = output(input, kernel, *this),
            .output_width = output(input + 1, kernel + wider, *this),
            .kernel_height = kernel,
            .kernel_width = kernel + wider,
            .stride_height = stride,
            .stride_width = stride,
            .padding_height = padding,
            .padding_width = padding,
            .dilation_height = dilation,
            .dilation_width = dilation,
            .channels_last = channels_last};
  }
};

constexpr Window kWindows[] = {
    {11, 2, 2, 0, 1},
    {11, 3, 2, 1, 1},
    {12, 3, 1, 1, 1},
    {11, 3, 1, 1, 2},
    {9, 1, 1, 0, 1},
    {9, 1, 3, 0, 1},
    {11, 5, 3, 2, 1},
    {40, 16, 1, 8, 1},
    {40, 17, 5, 3, 1},
    {4, 2, 1, 3, 5},
    {13, 3, 2, 1, 1, 1},
    {13, 3, 2, 1, 1, 8},
    {13, 3, 2, 1, 1, 31},
    {13, 3, 2, 1, 1, 64},
    {6, 3, 2, 1, 1, 300},
    {270, 256, 7, 0, 1, 2},
    // Square windows of the usual networks, which have kernels of their own.
    {13, 3, 2, 1, 1, 5, 0},
    {12, 3, 2, 1, 1, 8, 0},
    {13, 3, 2, 0, 1, 64, 0},
    {12, 2, 2, 0, 1, 5, 0},
    {13, 2, 2, 0, 1, 64, 0},
};

std::vector<float> values_with_ties(int64_t count) {
  std::vector<float> values = random_values(count, 6, true);
  for (float& value : values) {
    value = std::round(4.0F * value) / 4.0F;
  }
  return values;
}

class MaxPool : public GpuTestOf<std::tuple<ElementType, bool>> {
 protected:
  ElementType type() const { return std::get<0>(GetParam()); }
  bool channels_last() const { return std::get<1>(GetParam()); }

  /// On the CPU and on the GPU, from memory that begins `offset` elements behind an allocation's start.
  void compare(const MaxPool2dShape& s, size_t offset) const {
    const int64_t inputs = s.batch * s.channels * s.input_height * s.input_width;
    const int64_t outputs = s.batch * s.channels * s.output_height * s.output_width;
    const auto bytes = [&](int64_t count) { return static_cast<size_t>(count * element_size(type())); };
    const size_t shift = offset * bytes(1);
    const int64_t items = cpu::max_pool2d_items(s);

    const std::vector<uint8_t> elements = as_elements(values_with_ties(inputs), type());
    std::vector<uint8_t> expected(bytes(outputs));
    std::vector<uint8_t> expected_positions(
        static_cast<size_t>(outputs * position_bytes(s.kernel_height, s.kernel_width)));
    cpu::max_pool2d(s, type(), elements.data(), expected.data(), expected_positions.data(), 0, items);
    const GpuBytes input(elements, shift);
    const GpuBytes output(expected.size(), shift);
    const GpuBytes positions(expected_positions.size(), offset);
    check(max_pool2d(s, type(), input.as<void>(), output.as<void>(), positions.as<uint8_t>(), nullptr));
    ASSERT_EQ(output.read(), expected);
    ASSERT_EQ(positions.read(), expected_positions);

    std::vector<int64_t> expected_indices(static_cast<size_t>(outputs));
    cpu::max_pool2d_indices(s, expected_positions.data(), expected_indices.data(), 0, items);
    const GpuArray<int64_t> indices(outputs);
    check(max_pool2d_indices(s, positions.as<uint8_t>(), indices.data(), nullptr));
    ASSERT_EQ(indices.read(), expected_indices);

    const std::vector<uint8_t> gradient = as_elements(random_values(outputs, 7, true), type());
    std::vector<uint8_t> expected_gradient(bytes(inputs));
    cpu::max_pool2d_backward(s, type(), gradient.data(), expected_positions.data(), expected_gradient.data(), 0,
                             cpu::max_pool2d_backward_items(s));
    const GpuBytes grad_output(gradient, shift);
    const GpuBytes grad_input(expected_gradient.size(), shift);
    check(max_pool2d_backward(s, type(), grad_output.as<void>(), positions.as<uint8_t>(), grad_input.as<void>(),
                              nullptr));
    ASSERT_EQ(grad_input.read(), expected_gradient);
  }
};

INSTANTIATE_TEST_SUITE_P(All, MaxPool, testing::Combine(testing::ValuesIn(kElementTypes), testing::Bool()));

TEST_P(MaxPool, GivesTheValuesPositionsAndGradientsOfTheCpu) {
  for (const Window& window : kWindows) {
    SCOPED_TRACE(testing::Message() << "input " << window.input << ", kernel " << window.kernel << ", stride "
                                    << window.stride << ", padding " << window.padding << ", dilation "
                                    << window.dilation << ", channels " << window.channels);
    compare(window.shape(channels_last()), 0);
  }
}

TEST_P(MaxPool, TakesTensorsThatBeginAnywhere) {
  for (const size_t offset : {1, 2, 3, 4, 8}) {
    SCOPED_TRACE(offset);
    compare(Window{13, 3, 2, 1, 1, 16}.shape(channels_last()), offset);
  }
}

TEST_P(MaxPool, DoesNothingForAnEmptyBatch) {
  MaxPool2dShape shape = Window{13, 3, 2, 1, 1}.shape(channels_last());
  shape.batch = 0;
  compare(shape, 0);
}

}  // namespace
}  // namespace actnn::cuda
