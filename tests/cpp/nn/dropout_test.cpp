#include "actnn/nn/dropout.h"

#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::bit_equal;

using DropoutTest = actnn_test::LayerTest;

TEST_P(DropoutTest, KeepsTheRightShareAndScales) {
  const at::Tensor ones = at::ones_like(input({8, 16, 16, 16}));
  const at::Tensor output = actnn::nn::Dropout(0.25)->forward(ones);
  EXPECT_NEAR((output != 0).to(at::kFloat).mean().item<double>(), 0.75, 0.02);
  const at::Tensor kept = output.masked_select(output != 0);
  EXPECT_TRUE(bit_equal(kept, at::full_like(kept, 1 / 0.75)));
}

TEST_P(DropoutTest, GradientHasTheMaskOfTheResult) {
  const at::Tensor ones = at::ones_like(input({4, 3, 8, 8})).requires_grad_();
  const at::Tensor output = actnn::nn::Dropout(0.5)->forward(ones);
  output.sum().backward();
  EXPECT_TRUE(bit_equal(ones.grad(), output));
}

TEST_P(DropoutTest, EvaluationReturnsTheInput) {
  actnn::nn::Dropout layer(0.5);
  layer->eval();
  const at::Tensor values = input({2, 3, 4, 4});
  EXPECT_TRUE(bit_equal(layer->forward(values), values));
}

TEST_P(DropoutTest, ExtremeProbabilitiesAreTorchs) {
  for (const double probability : {0.0, 1.0}) {
    const at::Tensor values = input({2, 3, 4, 4});
    EXPECT_TRUE(
        at::equal(actnn::nn::Dropout(probability)->forward(values), torch::nn::Dropout(probability)->forward(values)));
  }
}

TEST_P(DropoutTest, InPlaceChangesItsInput) {
  actnn::nn::Dropout layer(actnn::nn::DropoutOptions(0.5).inplace(true));
  const at::Tensor values = at::ones_like(input({2, 3, 8, 8}));
  const at::Tensor output = layer->forward(values);
  EXPECT_EQ(output.data_ptr(), values.data_ptr());
  EXPECT_GT((values == 0).sum().item<int64_t>(), 0);
}

INSTANTIATE_TEST_SUITE_P(Formats, DropoutTest, actnn_test::all_formats(), actnn_test::format_name);

TEST(Dropout, FollowsTheManualSeed) {
  actnn::nn::Dropout layer(0.5);
  const at::Tensor ones = at::ones({1000});
  at::manual_seed(5);
  const at::Tensor first = layer->forward(ones);
  EXPECT_FALSE(at::equal(layer->forward(ones), first));
  at::manual_seed(5);
  EXPECT_TRUE(at::equal(layer->forward(ones), first));
}

TEST(Dropout, OtherTypesRunTorchsOperation) {
  const at::Tensor output = actnn::nn::Dropout(0.5)->forward(at::ones({1000}, at::kDouble));
  EXPECT_NEAR((output == 0).to(at::kFloat).mean().item<double>(), 0.5, 0.1);
}

TEST(Dropout, RefusesWrongProbabilities) { EXPECT_THROW(actnn::nn::Dropout(1.5), c10::Error); }

}  // namespace
