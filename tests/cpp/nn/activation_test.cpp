#include "actnn/nn/activation.h"

#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::bit_equal;
using actnn_test::expect_same_layers;

using ReLUTest = actnn_test::LayerTest;

TEST_P(ReLUTest, ResultAndGradientAreTorchs) {
  for (const std::vector<int64_t>& size : {std::vector<int64_t>{13}, {5, 7}, {2, 3, 5, 7}, {2, 3, 3, 2, 5}}) {
    expect_same_layers<actnn::nn::ReLU, torch::nn::ReLU>(actnn::nn::ReLUOptions(), torch::nn::ReLUOptions(),
                                                         input(size));
  }
}

TEST_P(ReLUTest, InPlaceChangesItsInput) {
  actnn::nn::ReLU layer(actnn::nn::ReLUOptions(true));
  const at::Tensor values = input({2, 3, 5, 7});
  const at::Tensor leaf = values.clone().requires_grad_();
  const at::Tensor changed = leaf * 1;
  const at::Tensor output = layer->forward(changed);
  EXPECT_EQ(output.data_ptr(), changed.data_ptr());
  EXPECT_TRUE(bit_equal(changed, at::relu(values)));
  output.sum().backward();
  EXPECT_TRUE(bit_equal(leaf.grad(), (values > 0).to(values.scalar_type())));
}

INSTANTIATE_TEST_SUITE_P(Formats, ReLUTest, actnn_test::all_formats(), actnn_test::format_name);

TEST(ReLU, OtherTypesRunTorchsOperation) {
  EXPECT_TRUE(
      bit_equal(actnn::nn::ReLU()->forward(at::tensor({-1.5, 2.0}, at::kDouble)), at::tensor({0.0, 2.0}, at::kDouble)));
  EXPECT_TRUE(at::equal(actnn::nn::ReLU()->forward(at::tensor({-1, 2})), at::tensor({0, 2})));
}

}  // namespace
