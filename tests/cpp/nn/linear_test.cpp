#include "actnn/nn/linear.h"

#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::expect_same_layers;

using LinearTest = actnn_test::LayerTest;

TEST_P(LinearTest, EveryRankOfInput) {
  for (const std::vector<int64_t>& size : {std::vector<int64_t>{9}, {5, 9}, {3, 4, 9}, {2, 3, 4, 9}}) {
    SCOPED_TRACE(size.size());
    expect_same_layers<actnn::nn::Linear, torch::nn::Linear>(actnn::nn::LinearOptions(9, 7).bits(8),
                                                             torch::nn::LinearOptions(9, 7), input(size),
                                                             actnn_test::kEightBitProduct);
  }
}

TEST_P(LinearTest, WithoutBias) {
  expect_same_layers<actnn::nn::Linear, torch::nn::Linear>(actnn::nn::LinearOptions(9, 7).bits(8).bias(false),
                                                           torch::nn::LinearOptions(9, 7).bias(false), input({5, 9}),
                                                           actnn_test::kEightBitProduct);
}

INSTANTIATE_TEST_SUITE_P(Formats, LinearTest,
                         testing::Combine(testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                                          testing::Values(false)),
                         actnn_test::format_name);

TEST(Linear, RefusesWrongBits) {
  EXPECT_THROW(actnn::nn::Linear(actnn::nn::LinearOptions(3, 4).bits(0)), c10::ValueError);
}

}  // namespace
