/// Layers whose bits a policy chooses.

#include "actnn/policy/policy.h"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include <sstream>

#include "actnn/nn.h"
#include "tests/cpp/nn/layer_comparison.h"

namespace {

namespace nn = actnn::nn;
using PolicyPointer = c10::intrusive_ptr<actnn::Policy>;

torch::nn::Sequential network() {
  return torch::nn::Sequential(torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).padding(1)),
                               torch::nn::BatchNorm2d(8), torch::nn::ReLU(), torch::nn::Conv2d(8, 8, 3),
                               torch::nn::BatchNorm2d(8), torch::nn::Flatten(), torch::nn::Linear(8 * 6 * 6, 10));
}

PolicyPointer policy_for(const char* level) {
  return c10::make_intrusive<actnn::Policy>(actnn::config_for_level(level));
}

TEST(LayersUnderAPolicy, AreToldWhatToKeep) {
  torch::manual_seed(0);
  auto model = network();
  const PolicyPointer policy = policy_for("L3");
  const auto report = nn::convert(model, {.policy = policy});
  EXPECT_EQ(report.count(nn::ConversionOutcome::kConverted), 6);
  ASSERT_EQ(policy->schemes().size(), 5U);
  EXPECT_EQ(policy->schemes()[0]->options().num_locations, 9);
  EXPECT_EQ(policy->schemes()[0]->options().name, "0");
  EXPECT_EQ(policy->schemes()[4]->options().channel_dim, -1);

  const auto x = torch::randn({16, 3, 8, 8});
  torch::optim::SGD optimizer(model->parameters(), 0.01);
  double first = 0;
  double last = 0;
  for (int step = 0; step < 12; ++step) {
    const auto loss = model->forward(x).square().mean();
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    (step == 0 ? first : last) = loss.item<double>();
  }
  EXPECT_LT(last, 0.7 * first);
  for (const auto& scheme : policy->schemes()) {
    EXPECT_GE(scheme->bits(), 1.0);
    EXPECT_EQ(scheme->scales().defined(), !scheme->options().normalization);
  }
}

TEST(LayersUnderAPolicy, EqualTorchInForwardAtEveryLevel) {
  for (const std::string& level : actnn::level_names()) {
    torch::manual_seed(0);
    auto model = network();
    const auto x = torch::randn({4, 3, 8, 8});
    const auto expected = model->forward(x);
    torch::manual_seed(0);
    auto converted = network();
    nn::convert(converted, {.policy = policy_for(level.c_str())});
    EXPECT_TRUE(torch::equal(converted->forward(x), expected)) << level;
    converted->forward(x).sum().backward();
  }
}

TEST(LayersUnderAPolicy, AreConvertedAsTheConfigurationSays) {
  const auto converted = [](const char* level) {
    auto model = network();
    return nn::convert(model, {.policy = policy_for(level)});
  };
  EXPECT_EQ(converted("L0").count(nn::ConversionOutcome::kConverted), 0);
  EXPECT_EQ(converted("L0").at("0").reason, "the configuration neither compresses nor swaps activations");
  EXPECT_EQ(converted("L1").at("1").reason, "enable_quantized_bn is off");
  EXPECT_EQ(converted("L1").count(nn::ConversionOutcome::kConverted), 4);
  EXPECT_EQ(converted("L2").count(nn::ConversionOutcome::kConverted), 6);
}

TEST(LayersUnderAPolicy, FixedLevelsUseTheConfiguredBits) {
  auto model = network();
  const PolicyPointer policy = policy_for("L2");
  nn::convert(model, {.policy = policy});
  const auto x = torch::randn({4, 3, 8, 8});
  model->forward(x).sum().backward();
  const auto* layer = model[0]->as<nn::Conv2d>();
  ASSERT_TRUE(layer && layer->scheme());
  EXPECT_FALSE(layer->scheme()->sensitivity().defined());
}

TEST(LayersUnderAPolicy, OtherLayersTakeTheBitsOnce) {
  nn::LayerNorm norm(nn::LayerNormOptions({4}));
  norm->set_policy(policy_for("L2"));
  EXPECT_EQ(norm->quantization().bits, 4);
  EXPECT_FALSE(norm->scheme());
  const PolicyPointer by_tensor = policy_for("L2");
  by_tensor->config().pergroup = false;  // which such layers do not know
  norm->set_policy(by_tensor);
  norm->forward(torch::randn({8, 4}, torch::requires_grad())).sum().backward();
}

TEST(LayersUnderAPolicy, SwappingWithoutCompressionLeavesLossyLayersAlone) {
  torch::nn::Sequential model(torch::nn::Linear(4, 4), torch::nn::LayerNorm(torch::nn::LayerNormOptions({4})),
                              torch::nn::ReLU());
  const auto report = nn::convert(model, {.policy = policy_for("swap")});
  EXPECT_EQ(report.at("0").outcome, nn::ConversionOutcome::kConverted);
  EXPECT_EQ(report.at("1").outcome, nn::ConversionOutcome::kLeftAlone);
  EXPECT_EQ(report.at("2").outcome, nn::ConversionOutcome::kConverted);
}

TEST(LayersUnderAPolicy, ArchivesHaveTheState) {
  torch::manual_seed(0);
  auto model = network();
  nn::convert(model, {.policy = policy_for("L3")});
  const auto x = torch::randn({8, 3, 8, 8});
  for (int step = 0; step < 3; ++step) {
    model->forward(x).square().mean().backward();
  }
  const auto scheme_of = [](torch::nn::Sequential& sequential) { return sequential[3]->as<nn::Conv2d>()->scheme(); };
  std::stringstream file;
  torch::save(model, file);

  auto other = network();
  nn::convert(other, {.policy = policy_for("L3")});
  torch::load(other, file);
  EXPECT_EQ(scheme_of(other)->bits(), scheme_of(model)->bits());
  EXPECT_TRUE(torch::equal(scheme_of(other)->scales(), scheme_of(model)->scales()));

  // A plain model reads the archive, and a converted one reads a plain model's.
  auto plain = network();
  file.seekg(0);
  torch::load(plain, file);
  EXPECT_TRUE(torch::equal(plain->parameters()[0], model->parameters()[0]));
  std::stringstream plain_file;
  torch::save(plain, plain_file);
  torch::load(other, plain_file);
  EXPECT_EQ(scheme_of(other)->bits(), scheme_of(model)->bits());
}

TEST(LayersUnderAPolicy, ACopyHasASchemeOfItsOwn) {
  nn::Conv2d layer(3, 8, 3);
  const PolicyPointer policy = policy_for("L3");
  layer->set_policy(policy, 0, "conv");
  layer->scheme()->set_bits(3.0);
  const auto copy = std::dynamic_pointer_cast<nn::Conv2dImpl>(layer->clone());
  ASSERT_TRUE(copy && copy->scheme());
  EXPECT_NE(copy->scheme(), layer->scheme());
  EXPECT_EQ(copy->scheme()->bits(), 3.0);
  EXPECT_EQ(policy->schemes().size(), 2U);
  layer->set_policy({});
  EXPECT_FALSE(layer->scheme());
}

TEST(LayersUnderAPolicy, UnbatchedAndFrozenLayersWork) {
  nn::Conv2d layer(3, 8, 3);
  layer->set_policy(policy_for("L3"));
  const auto x = torch::randn({3, 8, 8}, torch::requires_grad());
  layer->forward(x).sum().backward();
  EXPECT_TRUE(layer->weight.grad().defined());
  layer->weight.set_requires_grad(false);
  const auto frozen = layer->scheme()->scales().clone();
  layer->forward(x).sum().backward();
  EXPECT_TRUE(torch::equal(layer->scheme()->scales(), frozen));
}

}  // namespace
