#include "actnn/nn/pooling.h"

#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::bit_equal;
using actnn_test::expect_same_layers;

class PoolingTest : public actnn_test::LayerTest {
 protected:
  template <class Ours, class Theirs, class Options>
  void compare(at::IntArrayRef size, const Options& options) {
    expect_same_layers<Ours, Theirs>(options, options, input(size));
  }
};

/// Torch has it for float32 only, on the CPU.
class AvgPool3dTest : public PoolingTest {};

TEST_P(PoolingTest, MaxPoolOptions) {
  using Options = torch::nn::MaxPool2dOptions;
  const std::vector<Options> all = {
      Options(2),
      Options({3, 2}),
      Options(3).stride(2).padding(1),
      Options(3).stride({1, 2}).padding({0, 1}).dilation({2, 1}),
      Options(3).stride(2).ceil_mode(true),
      Options(2).stride(3).ceil_mode(true).dilation(2),
      Options({17, 18}).stride(1),
  };
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    compare<actnn::nn::MaxPool2d, torch::nn::MaxPool2d>({2, 3, 19, 20}, all[i]);
    compare<actnn::nn::MaxPool2d, torch::nn::MaxPool2d>({3, 19, 20}, all[i]);
  }
}

TEST_P(PoolingTest, MaxPoolGivesTorchsIndices) {
  const auto options = torch::nn::MaxPool2dOptions(3).stride(2).padding(1);
  const at::Tensor values = input({2, 3, 9, 8});
  const auto [output, indices] = actnn::nn::MaxPool2d(options)->forward_with_indices(values);
  const auto [expected, expected_indices] = torch::nn::MaxPool2d(options)->forward_with_indices(values);
  EXPECT_TRUE(bit_equal(output, expected));
  EXPECT_TRUE(at::equal(indices, expected_indices));
}

TEST_P(PoolingTest, MaxPool1d) {
  using Options = torch::nn::MaxPool1dOptions;
  for (const auto& options :
       {Options(3), Options(3).stride(2).padding(1), Options(2).stride(3).ceil_mode(true), Options(3).dilation(2)}) {
    compare<actnn::nn::MaxPool1d, torch::nn::MaxPool1d>({2, 3, 13}, options);
    compare<actnn::nn::MaxPool1d, torch::nn::MaxPool1d>({3, 13}, options);
  }
  const at::Tensor values = input({2, 3, 13});
  const auto [output, indices] = actnn::nn::MaxPool1d(3)->forward_with_indices(values);
  const auto [expected, expected_indices] = torch::nn::MaxPool1d(3)->forward_with_indices(values);
  EXPECT_TRUE(bit_equal(output, expected));
  EXPECT_TRUE(at::equal(indices, expected_indices));
}

TEST_P(PoolingTest, MaxPool3d) {
  using Options = torch::nn::MaxPool3dOptions;
  for (const auto& options : {Options(2), Options({3, 2, 2}).stride({2, 1, 2}).padding({1, 1, 0}).dilation({1, 2, 1}),
                              Options(2).stride(3).ceil_mode(true)}) {
    compare<actnn::nn::MaxPool3d, torch::nn::MaxPool3d>({2, 3, 5, 6, 7}, options);
    // Torch takes no such input in channels_last.
    expect_same_layers<actnn::nn::MaxPool3d, torch::nn::MaxPool3d>(options, options, input({3, 5, 6, 7}).contiguous());
  }
  const at::Tensor values = input({2, 3, 5, 6, 7});
  const auto [output, indices] = actnn::nn::MaxPool3d(3)->forward_with_indices(values);
  const auto [expected, expected_indices] = torch::nn::MaxPool3d(3)->forward_with_indices(values);
  EXPECT_TRUE(bit_equal(output, expected));
  EXPECT_TRUE(at::equal(indices, expected_indices));
}

TEST_P(PoolingTest, AvgPool1d) {
  using Options = torch::nn::AvgPool1dOptions;
  for (const auto& options : {Options(3), Options(3).stride(2).padding(1), Options(2).stride(3).ceil_mode(true),
                              Options(3).padding(1).count_include_pad(false)}) {
    compare<actnn::nn::AvgPool1d, torch::nn::AvgPool1d>({2, 3, 13}, options);
    compare<actnn::nn::AvgPool1d, torch::nn::AvgPool1d>({3, 13}, options);
  }
}

TEST_P(PoolingTest, AvgPool2d) {
  using Options = torch::nn::AvgPool2dOptions;
  for (const auto& options :
       {Options(3), Options({3, 2}).stride({2, 1}).padding(1), Options(2).stride(3).ceil_mode(true),
        Options(3).padding(1).count_include_pad(false), Options(2).divisor_override(3)}) {
    compare<actnn::nn::AvgPool2d, torch::nn::AvgPool2d>({2, 3, 9, 10}, options);
    compare<actnn::nn::AvgPool2d, torch::nn::AvgPool2d>({3, 9, 10}, options);
  }
}

TEST_P(AvgPool3dTest, ResultAndGradientAreTorchs) {
  using Options = torch::nn::AvgPool3dOptions;
  for (const auto& options :
       {Options(2), Options({3, 2, 2}).stride({2, 1, 2}).padding(1), Options(2).divisor_override(3)}) {
    compare<actnn::nn::AvgPool3d, torch::nn::AvgPool3d>({2, 3, 5, 6, 7}, options);
    compare<actnn::nn::AvgPool3d, torch::nn::AvgPool3d>({3, 5, 6, 7}, options);
  }
}

TEST_P(PoolingTest, AdaptiveAvgPool) {
  compare<actnn::nn::AdaptiveAvgPool1d, torch::nn::AdaptiveAvgPool1d>({2, 3, 13},
                                                                      torch::nn::AdaptiveAvgPool1dOptions(4));
  using Options2d = torch::nn::AdaptiveAvgPool2dOptions;
  for (const auto& options : {Options2d(1), Options2d(4), Options2d({3, 5}), Options2d({std::nullopt, 2})}) {
    compare<actnn::nn::AdaptiveAvgPool2d, torch::nn::AdaptiveAvgPool2d>({2, 3, 9, 10}, options);
    compare<actnn::nn::AdaptiveAvgPool2d, torch::nn::AdaptiveAvgPool2d>({3, 9, 10}, options);
  }
  using Options3d = torch::nn::AdaptiveAvgPool3dOptions;
  for (const auto& options : {Options3d(1), Options3d({3, 2, 5}), Options3d({std::nullopt, 2, std::nullopt})}) {
    compare<actnn::nn::AdaptiveAvgPool3d, torch::nn::AdaptiveAvgPool3d>({2, 3, 5, 6, 7}, options);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PoolingTest, actnn_test::all_formats(), actnn_test::format_name);
INSTANTIATE_TEST_SUITE_P(Formats, AvgPool3dTest, testing::Combine(testing::Values(at::kFloat), testing::Bool()),
                         actnn_test::format_name);

TEST(Pooling, OtherTypesRunTorchsOperation) {
  const at::Tensor plane = at::randn({2, 3, 6, 6}, at::kDouble);
  EXPECT_TRUE(bit_equal(actnn::nn::MaxPool2d(2)->forward(plane), torch::nn::MaxPool2d(2)->forward(plane)));
  EXPECT_TRUE(bit_equal(actnn::nn::AvgPool2d(2)->forward(plane), torch::nn::AvgPool2d(2)->forward(plane)));
  EXPECT_TRUE(
      bit_equal(actnn::nn::AdaptiveAvgPool2d(2)->forward(plane), torch::nn::AdaptiveAvgPool2d(2)->forward(plane)));
  EXPECT_TRUE(bit_equal(std::get<1>(actnn::nn::MaxPool2d(2)->forward_with_indices(plane)),
                        std::get<1>(torch::nn::MaxPool2d(2)->forward_with_indices(plane))));
  const at::Tensor line = plane[0];
  EXPECT_TRUE(bit_equal(actnn::nn::MaxPool1d(2)->forward(line), torch::nn::MaxPool1d(2)->forward(line)));
  EXPECT_TRUE(bit_equal(actnn::nn::MaxPool3d(2)->forward(plane), torch::nn::MaxPool3d(2)->forward(plane)));
  EXPECT_TRUE(bit_equal(actnn::nn::AvgPool1d(2)->forward(line), torch::nn::AvgPool1d(2)->forward(line)));
  EXPECT_TRUE(
      bit_equal(actnn::nn::AdaptiveAvgPool1d(2)->forward(line), torch::nn::AdaptiveAvgPool1d(2)->forward(line)));
  EXPECT_TRUE(bit_equal(actnn::nn::AvgPool3d(2)->forward(plane), torch::nn::AvgPool3d(2)->forward(plane)));
  EXPECT_TRUE(
      bit_equal(actnn::nn::AdaptiveAvgPool3d(2)->forward(plane), torch::nn::AdaptiveAvgPool3d(2)->forward(plane)));
}

}  // namespace
