#include "actnn/nn/activation.h"

#include "actnn/nn/softmax.h"
#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::bit_equal;
using actnn_test::expect_same;
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

class ActivationTest : public actnn_test::LayerTest {
 protected:
  template <class Ours, class Theirs, class OurOptions, class TheirOptions>
  void compare(const OurOptions& ours, const TheirOptions& theirs, const actnn_test::Tolerance& tolerance = {}) {
    for (const std::vector<int64_t>& size : {std::vector<int64_t>{40, 6}, {8, 6, 9}, {2, 6, 5, 7}}) {
      expect_same_layers<Ours, Theirs>(ours, theirs, input(size), tolerance);
    }
  }
};

/// Of 8-bit copies, also in evaluation mode.
constexpr actnn_test::Tolerance kEightBitDerivative{.input = 0.02, .exact_input_in_evaluation = false};

TEST_P(ActivationTest, PiecewiseLinearOnesAreTorchs) {
  const auto slope = torch::nn::LeakyReLUOptions().negative_slope(0.2);
  compare<actnn::nn::LeakyReLU, torch::nn::LeakyReLU>(slope, slope);
  const auto bounds = torch::nn::HardtanhOptions().min_val(-0.3).max_val(0.1);
  compare<actnn::nn::Hardtanh, torch::nn::Hardtanh>(bounds, bounds);
  compare<actnn::nn::ReLU6, torch::nn::ReLU6>(torch::nn::ReLU6Options(), torch::nn::ReLU6Options());
}

TEST_P(ActivationTest, InPlaceOnesChangeTheirInput) {
  const auto change = [&](auto layer, const auto& reference) {
    const at::Tensor values = input({2, 3, 5, 7});
    const at::Tensor leaf = values.clone().requires_grad_();
    const at::Tensor changed = leaf * 1;
    const at::Tensor output = layer->forward(changed);
    EXPECT_EQ(output.data_ptr(), changed.data_ptr());
    EXPECT_TRUE(bit_equal(changed, reference(values)));
    output.sum().backward();
    const at::Tensor other = values.clone().requires_grad_();
    reference(other).sum().backward();
    EXPECT_TRUE(bit_equal(leaf.grad(), other.grad()));
  };
  change(actnn::nn::LeakyReLU(actnn::nn::LeakyReLUOptions().inplace(true)),
         [](const at::Tensor& values) { return at::leaky_relu(values); });
  change(actnn::nn::Hardtanh(actnn::nn::HardtanhOptions().inplace(true)),
         [](const at::Tensor& values) { return at::hardtanh(values); });
  change(actnn::nn::ReLU6(actnn::nn::ReLU6Options(true)), [](const at::Tensor& values) { return at::relu6(values); });
}

TEST_P(ActivationTest, SmoothOnesAreTorchsUpToTheCopy) {
  using namespace actnn::nn;
  for (const char* approximate : {"none", "tanh"}) {
    compare<GELU, torch::nn::GELU>(GELUOptions().approximate(approximate).bits(8),
                                   torch::nn::GELUOptions().approximate(approximate), kEightBitDerivative);
  }
  const auto same = [&](auto ours, auto theirs) {
    ours->options.bits(8);
    for (const std::vector<int64_t>& size : {std::vector<int64_t>{40, 6}, {2, 6, 5, 7}}) {
      expect_same(ours, theirs, input(size), kEightBitDerivative);
    }
  };
  same(SiLU(), torch::nn::SiLU());
  same(Sigmoid(), torch::nn::Sigmoid());
  same(Tanh(), torch::nn::Tanh());
}

TEST_P(ActivationTest, PReLU) {
  compare<actnn::nn::PReLU, torch::nn::PReLU>(actnn::nn::PReLUOptions().num_parameters(6).init(0.1).bits(8),
                                              torch::nn::PReLUOptions().num_parameters(6).init(0.1), {.weight = 0.1});
}

TEST_P(ActivationTest, SoftmaxIsTorchsUpToTheCopies) {
  using namespace actnn::nn;
  for (const int64_t dim : {0, 1, -1}) {
    compare<Softmax, torch::nn::Softmax>(SoftmaxOptions(dim).bits(8), torch::nn::SoftmaxOptions(dim),
                                         kEightBitDerivative);
    compare<LogSoftmax, torch::nn::LogSoftmax>(LogSoftmaxOptions(dim).bits(8), torch::nn::LogSoftmaxOptions(dim),
                                               kEightBitDerivative);
  }
  Softmax2d ours(Softmax2dOptions().bits(8));
  torch::nn::Softmax2d theirs;
  expect_same(ours, theirs, input({2, 6, 5, 7}), kEightBitDerivative);
  EXPECT_THROW(ours->forward(input({2, 6})), c10::ValueError);
}

INSTANTIATE_TEST_SUITE_P(Formats, ActivationTest, actnn_test::all_formats(), actnn_test::format_name);

TEST(Activations, OtherTypesRunTorchsOperation) {
  using namespace actnn::nn;
  const at::Tensor values = at::randn({3, 4}, at::kDouble);
  EXPECT_TRUE(bit_equal(LeakyReLU()->forward(values), at::leaky_relu(values)));
  EXPECT_TRUE(bit_equal(Hardtanh()->forward(values), at::hardtanh(values)));
  EXPECT_TRUE(bit_equal(ReLU6()->forward(values), at::relu6(values)));
  EXPECT_TRUE(bit_equal(GELU()->forward(values), at::gelu(values)));
  EXPECT_TRUE(bit_equal(SiLU()->forward(values), at::silu(values)));
  EXPECT_TRUE(bit_equal(Sigmoid()->forward(values), at::sigmoid(values)));
  EXPECT_TRUE(bit_equal(Tanh()->forward(values), at::tanh(values)));
  EXPECT_TRUE(bit_equal(Softmax(1)->forward(values), at::softmax(values, 1)));
  EXPECT_TRUE(bit_equal(LogSoftmax(1)->forward(values), at::log_softmax(values, 1)));
}

TEST(Activations, RefuseWrongQuantization) {
  EXPECT_THROW(actnn::nn::GELU(actnn::nn::GELUOptions().bits(0)), c10::ValueError);
  EXPECT_THROW(actnn::nn::Softmax(actnn::nn::SoftmaxOptions(1).group_size(5)), c10::ValueError);
  EXPECT_THROW(actnn::nn::PReLU(actnn::nn::PReLUOptions().bits(9)), c10::ValueError);
}

TEST(ReLU, OtherTypesRunTorchsOperation) {
  EXPECT_TRUE(
      bit_equal(actnn::nn::ReLU()->forward(at::tensor({-1.5, 2.0}, at::kDouble)), at::tensor({0.0, 2.0}, at::kDouble)));
  EXPECT_TRUE(at::equal(actnn::nn::ReLU()->forward(at::tensor({-1, 2})), at::tensor({0, 2})));
}

}  // namespace
