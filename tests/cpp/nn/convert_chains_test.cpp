#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/normalization.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include <functional>
#include <memory>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "actnn/nn.h"
#include "tests/cpp/nn/layer_comparison.h"

namespace user {

/// A Sequential that looks at what its elements make.
struct FeaturesImpl : torch::nn::SequentialImpl {
  using SequentialImpl::SequentialImpl;
  at::Tensor forward(at::Tensor value) {
    for (auto& element : *this) {
      value = element.forward(value);
    }
    return value;
  }
};
TORCH_MODULE(Features);

}  // namespace user

namespace {

using actnn_test::bit_equal;
using actnn_test::relative_error;
using torch::nn::Sequential;
using torch::nn::SequentialImpl;
using Names = std::vector<std::string>;

Sequential cnn() {
  using namespace torch::nn;
  return Sequential(Conv2d(Conv2dOptions(3, 8, 3).padding(1).bias(false)), BatchNorm2d(8), ReLU(ReLUOptions(true)),
                    MaxPool2d(2), Conv2d(Conv2dOptions(8, 8, 3).padding(1).groups(2)), BatchNorm2d(8), SiLU(),
                    ConvTranspose2d(ConvTranspose2dOptions(8, 4, 3).stride(2).output_padding(1)),
                    LeakyReLU(LeakyReLUOptions().negative_slope(0.2)), AdaptiveAvgPool2d(4), Flatten(), Linear(64, 16),
                    ReLU(), Linear(16, 3));
}

Sequential mlp() {
  using namespace torch::nn;
  return Sequential(Linear(12, 32), LayerNorm(LayerNormOptions({32})), GELU(), Dropout(DropoutOptions(0.0)),
                    Linear(32, 32), BatchNorm1d(32), Tanh(), Linear(32, 24), GELU(GELUOptions().approximate("tanh")),
                    Linear(24, 5), Sigmoid());
}

std::shared_ptr<SequentialImpl> copy_of(const Sequential& model) {
  return std::dynamic_pointer_cast<SequentialImpl>(model->clone());
}

std::vector<Names> layers_of(const actnn::nn::ConversionReport& report) {
  std::vector<Names> layers;
  for (const auto& entry : report.chains) {
    layers.push_back(entry.layers);
  }
  return layers;
}

struct Case {
  std::string name;
  Sequential (*make)();
  std::vector<int64_t> sizes;
  std::vector<Names> chains;
};

void PrintTo(const Case& of, std::ostream* stream) {  // NOLINT(readability-identifier-naming): GoogleTest's
  *stream << of.name;
}

class ConvertChains : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override { at::manual_seed(1); }

  at::Tensor input() const { return at::randn(GetParam().sizes); }
};

INSTANTIATE_TEST_SUITE_P(
    Networks, ConvertChains,
    testing::Values(
        Case{"cnn", cnn, {4, 3, 16, 16}, {{"0", "1", "2", "3", "4", "5", "6", "7", "8"}, {"11", "12", "13"}}},
        Case{"mlp", mlp, {64, 12}, {{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"}}}),
    [](const auto& of) { return of.param.name; });

TEST_P(ConvertChains, ComputesWhatTheLayersDo) {
  Sequential model = GetParam().make();
  const auto reference = copy_of(model);
  const auto report = actnn::nn::convert(model, {.quantization = {.bits = 8}});
  EXPECT_EQ(layers_of(report), GetParam().chains) << report;
  for (const bool training : {true, false}) {
    model->train(training);
    reference->train(training);
    const at::Tensor given = input();
    const at::Tensor first = given.clone().requires_grad_();
    const at::Tensor second = given.clone().requires_grad_();
    const at::Tensor output = model->forward(first);
    const at::Tensor expected = reference->forward(second);
    EXPECT_TRUE(at::allclose(output, expected, 1e-4, 1e-5));
    const at::Tensor grad = at::randn_like(expected);
    model->zero_grad();
    reference->zero_grad();
    output.backward(grad);
    expected.backward(grad);
    EXPECT_LT(relative_error(first.grad(), second.grad()), 0.05);
    const auto parameters = model->named_parameters();
    for (const auto& parameter : reference->named_parameters()) {
      if (parameter->grad().norm().item<double>() > 1e-3) {  // those of biases in front of batch norms are rounding
        EXPECT_LT(relative_error(parameters[parameter.key()].grad(), parameter->grad()), 0.05)
            << parameter.key() << " training " << training;
      }
    }
    for (const auto& buffer : reference->named_buffers()) {
      EXPECT_TRUE(at::allclose(model->named_buffers()[buffer.key()], buffer.value(), 1e-4, 1e-5)) << buffer.key();
    }
  }
  for (const auto& entry : report.chains) {
    EXPECT_GT(entry.chain.saved_bytes(), 0);
    EXPECT_NE(entry.chain.plan().find("\"saves\""), std::string::npos);
  }
}

TEST_P(ConvertChains, ComputesTheVeryNumbersWithoutGradients) {
  Sequential model = GetParam().make();
  const auto reference = copy_of(model);
  actnn::nn::convert(model);
  const at::NoGradGuard no_grad;
  const at::Tensor given = input();
  EXPECT_TRUE(bit_equal(model->forward(given), reference->forward(given)));
}

TEST_P(ConvertChains, TrainsAtFourBits) {
  Sequential model = GetParam().make();
  torch::optim::SGD optimizer(model->parameters(), 0.3);
  actnn::nn::convert(model);
  const at::Tensor given = input();
  const at::Tensor target = (given.flatten(1).narrow(1, 0, model->forward(given).size(1)) > 0).to(at::kFloat);
  const auto loss = [&] { return (model->forward(given) - target).square().mean(); };
  const double before = loss().item<double>();
  for (int step = 0; step < 40; ++step) {
    optimizer.zero_grad();
    loss().backward();
    optimizer.step();
  }
  EXPECT_LT(loss().item<double>(), 0.9 * before);
}

TEST_P(ConvertChains, ClonesAndArchivesAreThoseOfTheLayers) {
  Sequential model = GetParam().make();
  const Sequential untouched = GetParam().make();
  actnn::nn::convert(model);
  EXPECT_EQ(model->named_parameters().keys(), untouched->named_parameters().keys());
  EXPECT_EQ(model->named_buffers().keys(), untouched->named_buffers().keys());
  EXPECT_EQ(model->named_modules().keys(), untouched->named_modules().keys());
  const at::Tensor given = input();
  model->forward(given);
  const auto clone = copy_of(model);
  std::stringstream archive;
  torch::save(model, archive);
  Sequential loaded = GetParam().make();
  actnn::nn::convert(loaded);
  torch::load(loaded, archive);
  const at::Tensor expected = model->forward(given);
  EXPECT_TRUE(at::allclose(clone->forward(given), expected, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(loaded->forward(given), expected, 1e-5, 1e-6));
  // The clone's chains are of its own layers.
  clone->forward(given).sum().backward();
  EXPECT_TRUE(clone->parameters()[0].grad().defined());
  EXPECT_FALSE(model->parameters()[0].grad().defined());
}

TEST_P(ConvertChains, InputsOfOtherTypesReachTheLayers) {
  Sequential model = GetParam().make();
  actnn::nn::convert(model);
  model->to(at::kDouble);
  std::string message;
  try {
    model->forward(input().to(at::kDouble));
  } catch (const c10::Error& error) {
    message = error.what_without_backtrace();
  }
  EXPECT_NE(message.find("input must be float32, float16 or bfloat16"), std::string::npos) << message;
  EXPECT_EQ(message.find("block"), std::string::npos) << message;

  Sequential norms(torch::nn::BatchNorm2d(3), torch::nn::ReLU());
  actnn::nn::convert(norms);
  const at::Tensor half = at::randn({4, 3, 5, 5}).to(at::kBFloat16).requires_grad_();
  EXPECT_EQ(norms->forward(half).scalar_type(), at::kBFloat16);
}

TEST(ConvertChain, SavesLessThanTheLayers) {
  using actnn::nn::ActivationKind;
  using actnn::nn::ChainBuilder;
  namespace nn = torch::nn;
  const nn::Conv2d conv(nn::Conv2dOptions(3, 8, 3).padding(1));
  const nn::BatchNorm2d norm(8);
  const nn::Conv2d next(nn::Conv2dOptions(8, 8, 3).padding(1));
  Sequential model(conv, norm, nn::ReLU(), nn::MaxPool2d(2), next, nn::SiLU());
  // Chains of one layer each save what the layer does.
  const std::vector<std::function<void(ChainBuilder&)>> layers{
      [&](ChainBuilder& builder) { builder.convolution(builder.input(), conv); },
      [&](ChainBuilder& builder) { builder.norm(builder.input(), norm); },
      [](ChainBuilder& builder) { builder.activation(builder.input(), ActivationKind::kReLU); },
      [](ChainBuilder& builder) {
        builder.max_pool(builder.input(), {{2, 2}, {2, 2}, {0, 0}, {1, 1}, false});
      },
      [&](ChainBuilder& builder) { builder.convolution(builder.input(), next); },
      [](ChainBuilder& builder) { builder.activation(builder.input(), ActivationKind::kSiLU); }};
  const at::Tensor input = at::randn({4, 3, 16, 16});
  at::Tensor value = input.clone().requires_grad_();
  int64_t alone = 0;
  for (const auto& add : layers) {
    ChainBuilder builder;
    add(builder);
    const actnn::nn::Chain chain = builder.build();
    value = chain.forward(value);
    alone += chain.saved_bytes();
  }
  const auto report = actnn::nn::convert(model);
  model->forward(input.clone().requires_grad_());
  EXPECT_EQ(report.chains.at(0).layers.size(), 6U);
  EXPECT_LT(report.chains.at(0).chain.saved_bytes(), alone);
  RecordProperty("chain", std::to_string(report.chains.at(0).chain.saved_bytes()));
  RecordProperty("alone", std::to_string(alone));
}

TEST(ConvertChain, ElementsAreTheLayers) {
  Sequential model = mlp();
  actnn::nn::convert(model);
  EXPECT_EQ(&model->at<actnn::nn::LinearImpl>(0), model->ptr(0).get());
  EXPECT_EQ(model->ptr<actnn::nn::SigmoidImpl>(10), model->children()[10]);
  const at::Tensor given = at::randn({4, 12});
  EXPECT_EQ(model->at<actnn::nn::LinearImpl>(0).forward(given).size(1), 32);
  // Where the element of a chain would give a tensor that it has not: never another one.
  EXPECT_THROW(model->begin()->forward(given), c10::Error);
  // One that does not begin a chain is called as a layer.
  EXPECT_EQ((model->begin() + 4)->forward(at::randn({4, 32})).size(1), 32);
}

TEST(ConvertChain, FollowsOptionsThatChange) {
  Sequential model(torch::nn::Linear(8, 8), torch::nn::LeakyReLU(), torch::nn::Dropout(0.5));
  actnn::nn::convert(model);
  const at::Tensor given = at::randn({16, 8});
  model->forward(given);
  model->at<actnn::nn::LeakyReLUImpl>(1).options.negative_slope(0.7);
  model->at<actnn::nn::DropoutImpl>(2).options.p(0);
  const auto& linear = model->at<actnn::nn::LinearImpl>(0);
  const at::Tensor expected = at::leaky_relu(at::linear(given, linear.weight, linear.bias), 0.7);
  EXPECT_TRUE(at::allclose(model->forward(given), expected, 1e-5, 1e-6));
  // Of two numbers of bits, layers have their own each.
  model->at<actnn::nn::LinearImpl>(0).quantization().bits = 1;
  EXPECT_TRUE(at::allclose(model->forward(given), expected, 1e-5, 1e-6));
}

TEST(ConvertChain, DropsInTrainingOnly) {
  Sequential model(torch::nn::Linear(8, 64), torch::nn::Dropout(0.5));
  actnn::nn::convert(model);
  const at::Tensor given = at::randn({64, 8});
  const double share = (model->forward(given) == 0).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(share, 0.5, 0.05);
  model->eval();
  EXPECT_EQ((model->forward(given) == 0).sum().item<int64_t>(), 0);
}

TEST(ConvertChain, SaysWhyThereIsNone) {
  using namespace torch::nn;
  const auto reason = [](const Sequential& model, const actnn::nn::ConversionOptions& options = {}) {
    const auto report = actnn::nn::convert(model, options);
    EXPECT_TRUE(report.chains.size() == 1 && report.chains[0].layers.empty()) << report;
    return report.chains.empty() ? "" : report.chains[0].reason;
  };
  EXPECT_EQ(reason(Sequential()), "there are no layers");
  EXPECT_EQ(reason(Sequential(Linear(3, 3), Flatten())),
            "0: no layer beside it can be in a chain with it; 1: torch::nn::Flatten has no part in chains");
  EXPECT_EQ(reason(Sequential(Conv2d(Conv2dOptions(3, 3, 3).padding(torch::kSame)), AvgPool2d(2))),
            "0: chains have paddings that are numbers; 1: actnn::nn::AvgPool2d has no part in chains");
  EXPECT_EQ(reason(Sequential(Conv1d(Conv1dOptions(3, 3, 3).padding_mode(torch::kCircular)), ReLU())),
            "0: chains pad by zeros; 1: no layer beside it can be in a chain with it");
  EXPECT_EQ(reason(Sequential(ReLU(ReLUOptions(true)), Linear(3, 3))),
            "0: it works in place on what others may read; 1: no layer beside it can be in a chain with it");
  EXPECT_EQ(reason(Sequential(ReLU(), Tanh())), "0 to 1: Chain: a chain must have a layer with weights or a norm");
  EXPECT_EQ(reason(Sequential(Linear(3, 3), ReLU()), {.quantization = {.bits = 1}}),
            "0: chains have copies of 2 bits or more; 1: no layer beside it can be in a chain with it");
  EXPECT_EQ(reason(Sequential(Linear(3, 3), ReLU()), {.skip = {"1"}}),
            "0: no layer beside it can be in a chain with it; 1: it is to be left alone");
  const torch::nn::Linear twice(3, 3);
  EXPECT_EQ(reason(Sequential(twice, twice)),
            "0: no layer beside it can be in a chain with it; 1: no layer beside it can be in a chain with it");
  torch::nn::Linear wide(3, 3);
  wide->to(at::kDouble);
  EXPECT_EQ(reason(Sequential(wide, ReLU())),
            "0: torch::nn::Linear has no part in chains; 1: no layer beside it can be in a chain with it");

  Sequential off(Linear(3, 3), ReLU());
  EXPECT_TRUE(actnn::nn::convert(off, {.chains = false}).chains.empty());
  user::Features features(Linear(3, 3), ReLU());
  EXPECT_EQ(actnn::nn::convert(features).chains.at(0).reason,
            "user::Features derives from Sequential and may call its elements one by one");
  EXPECT_EQ(features->forward(at::randn({2, 3})).size(1), 3);
}

TEST(ConvertChain, UnusualInputsRunLayerByLayer) {
  Sequential model(torch::nn::Conv2d(3, 4, 3), torch::nn::ReLU());
  const auto reference = copy_of(model);
  const auto report = actnn::nn::convert(model);
  for (const at::Tensor& given : {at::randn({3, 6, 6}), at::randn({0, 3, 6, 6})}) {
    EXPECT_TRUE(at::equal(model->forward(given), reference->forward(given)));
  }
  EXPECT_EQ(report.chains.at(0).chain.saved_bytes(), 0);
  EXPECT_THROW(model->forward(at::randn({2, 5, 6, 6})), c10::Error);
}

TEST(ConvertChain, IsMadeAgainByASecondConversion) {
  Sequential model = mlp();
  actnn::nn::convert(model);
  const auto report = actnn::nn::convert(model);
  EXPECT_EQ(report.chains.at(0).layers.size(), 11U);
  EXPECT_EQ(model->forward(at::randn({4, 12})).size(1), 5);
  EXPECT_NE(report.to_string().find("chains: 0 1 2 3 4 5 6 7 8 9 10"), std::string::npos) << report;
}

TEST(ChainBuilder, IsSpentByBuild) {
  actnn::nn::ChainBuilder builder;
  builder.activation(builder.input(), actnn::nn::ActivationKind::kReLU);
  EXPECT_TRUE(builder.build());
  EXPECT_THROW(builder.build(), c10::Error);
  EXPECT_THROW(builder.add(builder.input(), builder.input()), c10::Error);
}

}  // namespace
