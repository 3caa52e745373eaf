#include "actnn/nn/convert.h"

#include <torch/nn/modules/container/moduledict.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include <sstream>

#include "actnn/nn.h"
#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn::nn::ConversionOutcome;
using actnn_test::bit_equal;
using torch::nn::Sequential;

Sequential small_net() {
  using namespace torch::nn;
  return Sequential(Conv2d(Conv2dOptions(3, 6, 3).padding(1)), BatchNorm2d(6), ReLU(ReLUOptions(true)), MaxPool2d(2),
                    Conv2d(Conv2dOptions(6, 4, 3).padding(torch::kSame).padding_mode(torch::kReflect)), AvgPool2d(2),
                    AdaptiveAvgPool2d(1), Flatten(), Linear(4, 2));
}

at::Tensor images() { return at::randn({4, 3, 16, 16}); }

/// Containers keep each element twice: as an element and as a registered child.
void expect_consistent(const Sequential& sequential) {
  const auto children = sequential->children();
  ASSERT_EQ(children.size(), sequential->size());
  for (size_t i = 0; i < children.size(); ++i) {
    EXPECT_EQ(children[i], sequential->ptr(i));
  }
}

TEST(Convert, ReplacesTheLayersOfASequential) {
  Sequential model = small_net();
  const auto report = actnn::nn::convert(model);
  EXPECT_EQ(report.count(ConversionOutcome::kConverted), 8);
  expect_consistent(model);
  EXPECT_TRUE(model->ptr(0)->as<actnn::nn::Conv2d>());
  EXPECT_TRUE(model->ptr(1)->as<actnn::nn::BatchNorm2d>());
  EXPECT_TRUE(model->ptr(2)->as<actnn::nn::ReLU>()->options.inplace());
  EXPECT_TRUE(model->ptr(3)->as<actnn::nn::MaxPool2d>());
  EXPECT_TRUE(model->ptr(5)->as<actnn::nn::AvgPool2d>());
  EXPECT_TRUE(model->ptr(6)->as<actnn::nn::AdaptiveAvgPool2d>());
  EXPECT_TRUE(model->ptr(7)->as<torch::nn::Flatten>());
  EXPECT_TRUE(model->ptr(8)->as<actnn::nn::Linear>());
}

TEST(Convert, ConvertsEveryLayerThatHasACompressedForm) {
  namespace theirs = torch::nn;
  const auto expect_converted = [](const auto& layer, const std::string& type) {
    torch::nn::AnyModule any(layer);
    const auto report = actnn::nn::convert(any);
    EXPECT_EQ(report.at("").replacement, type) << report;
  };
  expect_converted(theirs::Conv1d(2, 3, 3), "actnn::nn::Conv1d");
  expect_converted(theirs::Conv2d(2, 3, 3), "actnn::nn::Conv2d");
  expect_converted(theirs::Conv3d(2, 3, 3), "actnn::nn::Conv3d");
  expect_converted(theirs::ConvTranspose1d(2, 3, 3), "actnn::nn::ConvTranspose1d");
  expect_converted(theirs::ConvTranspose2d(2, 3, 3), "actnn::nn::ConvTranspose2d");
  expect_converted(theirs::ConvTranspose3d(2, 3, 3), "actnn::nn::ConvTranspose3d");
  expect_converted(theirs::Linear(2, 3), "actnn::nn::Linear");
  expect_converted(theirs::BatchNorm1d(2), "actnn::nn::BatchNorm1d");
  expect_converted(theirs::BatchNorm2d(2), "actnn::nn::BatchNorm2d");
  expect_converted(theirs::BatchNorm3d(2), "actnn::nn::BatchNorm3d");
  expect_converted(theirs::LayerNorm(theirs::LayerNormOptions({3})), "actnn::nn::LayerNorm");
  expect_converted(theirs::GroupNorm(2, 4), "actnn::nn::GroupNorm");
  expect_converted(theirs::InstanceNorm1d(2), "actnn::nn::InstanceNorm1d");
  expect_converted(theirs::InstanceNorm2d(2), "actnn::nn::InstanceNorm2d");
  expect_converted(theirs::InstanceNorm3d(2), "actnn::nn::InstanceNorm3d");
  expect_converted(theirs::Embedding(2, 3), "actnn::nn::Embedding");
  expect_converted(theirs::ReLU(), "actnn::nn::ReLU");
  expect_converted(theirs::ReLU6(), "actnn::nn::ReLU6");
  expect_converted(theirs::LeakyReLU(), "actnn::nn::LeakyReLU");
  expect_converted(theirs::Hardtanh(), "actnn::nn::Hardtanh");
  expect_converted(theirs::PReLU(), "actnn::nn::PReLU");
  expect_converted(theirs::GELU(), "actnn::nn::GELU");
  expect_converted(theirs::SiLU(), "actnn::nn::SiLU");
  expect_converted(theirs::Sigmoid(), "actnn::nn::Sigmoid");
  expect_converted(theirs::Tanh(), "actnn::nn::Tanh");
  expect_converted(theirs::Softmax(1), "actnn::nn::Softmax");
  expect_converted(theirs::Softmax2d(), "actnn::nn::Softmax2d");
  expect_converted(theirs::LogSoftmax(1), "actnn::nn::LogSoftmax");
  expect_converted(theirs::Dropout(), "actnn::nn::Dropout");
  expect_converted(theirs::MaxPool1d(2), "actnn::nn::MaxPool1d");
  expect_converted(theirs::MaxPool2d(2), "actnn::nn::MaxPool2d");
  expect_converted(theirs::MaxPool3d(2), "actnn::nn::MaxPool3d");
  expect_converted(theirs::AvgPool1d(2), "actnn::nn::AvgPool1d");
  expect_converted(theirs::AvgPool2d(2), "actnn::nn::AvgPool2d");
  expect_converted(theirs::AvgPool3d(2), "actnn::nn::AvgPool3d");
  expect_converted(theirs::AdaptiveAvgPool1d(2), "actnn::nn::AdaptiveAvgPool1d");
  expect_converted(theirs::AdaptiveAvgPool2d(2), "actnn::nn::AdaptiveAvgPool2d");
  expect_converted(theirs::AdaptiveAvgPool3d(2), "actnn::nn::AdaptiveAvgPool3d");
}

TEST(Convert, KeepsForwardAndStatisticsBitForBit) {
  at::manual_seed(1);
  Sequential model = small_net();
  const auto reference = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(model->clone());
  actnn::nn::convert(model, {.chains = false});
  const at::Tensor input = images();
  for (const bool training : {true, false}) {
    model->train(training);
    reference->train(training);
    EXPECT_TRUE(bit_equal(model->forward(input), reference->forward(input)));
  }
  for (const auto& buffer : reference->named_buffers()) {
    EXPECT_TRUE(bit_equal(model->named_buffers()[buffer.key()], buffer.value())) << buffer.key();
  }
}

TEST(Convert, KeepsEveryOptionOfALayer) {
  using namespace torch::nn;
  const at::Tensor input = at::randn({2, 4, 11, 10});
  Sequential model(
      Conv2d(Conv2dOptions(4, 6, {3, 2}).stride({2, 1}).padding({1, 2}).dilation({1, 2}).groups(2).bias(false)),
      BatchNorm2d(BatchNorm2dOptions(6).eps(0.1).momentum(std::nullopt).affine(false)),
      ConvTranspose2d(ConvTranspose2dOptions(6, 4, 3).stride(3).padding(1).output_padding(2).dilation(2).groups(2)),
      MaxPool2d(MaxPool2dOptions(3).stride(2).padding(1).dilation(2).ceil_mode(true)),
      AvgPool2d(AvgPool2dOptions(2).stride(1).padding(1).ceil_mode(true).count_include_pad(false).divisor_override(3)),
      Conv2d(Conv2dOptions(4, 3, 2).padding(torch::kSame).padding_mode(torch::kReplicate)),
      AdaptiveAvgPool2d(AdaptiveAvgPool2dOptions({std::nullopt, 2})));
  const auto reference = std::dynamic_pointer_cast<SequentialImpl>(model->clone());
  EXPECT_EQ(actnn::nn::convert(model, {.chains = false}).count(ConversionOutcome::kConverted), 7);
  EXPECT_TRUE(bit_equal(model->forward(input), reference->forward(input)));
}

TEST(Convert, KeepsTheVeryTensors) {
  Sequential model = small_net();
  const auto parameters = model->named_parameters();
  const auto buffers = model->named_buffers();
  const at::Tensor weight = model->at<torch::nn::Conv2dImpl>(0).weight;
  const at::Tensor running_mean = (*model->ptr(1)->as<torch::nn::BatchNorm2d>()).running_mean;
  actnn::nn::convert(model);
  ASSERT_EQ(model->named_parameters().keys(), parameters.keys());
  ASSERT_EQ(model->named_buffers().keys(), buffers.keys());
  for (const auto& parameter : model->named_parameters()) {
    EXPECT_TRUE(parameter->is_same(parameters[parameter.key()])) << parameter.key();
  }
  for (const auto& buffer : model->named_buffers()) {
    EXPECT_TRUE(buffer->is_same(buffers[buffer.key()])) << buffer.key();
  }
  EXPECT_TRUE(model->at<actnn::nn::Conv2dImpl>(0).weight.is_same(weight));
  EXPECT_TRUE(model->at<actnn::nn::BatchNorm2dImpl>(1).running_mean.is_same(running_mean));
}

TEST(Convert, OptimizerMadeBeforeTrainsTheConvertedModel) {
  Sequential model = small_net();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  actnn::nn::convert(model);
  const at::Tensor input = images();
  const at::Tensor target = at::randn({4, 2});
  const auto loss = [&] { return (model->forward(input) - target).square().mean(); };
  const double before = loss().item<double>();
  for (int step = 0; step < 10; ++step) {
    optimizer.zero_grad();
    loss().backward();
    optimizer.step();
  }
  EXPECT_LT(loss().item<double>(), before);
}

TEST(Convert, GradientsCloseToTorchsInAWholeModel) {
  Sequential model = small_net();
  const auto reference = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(model->clone());
  actnn::nn::convert(model, {.quantization = {.bits = 8}});
  const at::Tensor input = images();
  model->forward(input).square().sum().backward();
  reference->forward(input).square().sum().backward();
  const auto parameters = model->named_parameters();
  for (const auto& parameter : reference->named_parameters()) {
    if (parameter.key() != "0.bias") {  // zero, before a batch norm
      EXPECT_LT(actnn_test::relative_error(parameters[parameter.key()].grad(), parameter->grad()), 0.1)
          << parameter.key();
    }
  }
}

TEST(Convert, SetsTheQuantization) {
  Sequential model = small_net();
  actnn::nn::convert(model, {.quantization = {.bits = 3, .group_size = 64, .rounding = actnn::Rounding::kNearest}});
  for (const auto& module : model->modules()) {
    if (auto* layer = module->as<actnn::nn::QuantizedModule>()) {
      EXPECT_EQ(layer->quantization().bits, 3);
      EXPECT_EQ(layer->quantization().group_size, 64);
      EXPECT_EQ(layer->quantization().rounding, actnn::Rounding::kNearest);
    }
  }
  EXPECT_EQ(model->at<actnn::nn::LinearImpl>(8).options.bits(), 3);
}

TEST(Convert, DrawsNoRandomNumbers) {
  Sequential model = small_net();
  at::manual_seed(5);
  actnn::nn::convert(model);
  const at::Tensor after = at::rand({3});
  at::manual_seed(5);
  EXPECT_TRUE(at::equal(after, at::rand({3})));
}

TEST(Convert, KeepsModeTypeAndFrozenParameters) {
  Sequential model = small_net();
  model->to(at::kBFloat16);
  (*model->ptr(1)->as<torch::nn::BatchNorm2d>()).eval();
  model->at<torch::nn::Conv2dImpl>(0).weight.set_requires_grad(false);
  actnn::nn::convert(model);
  EXPECT_TRUE(model->ptr(0)->is_training());
  EXPECT_FALSE(model->ptr(1)->is_training());
  EXPECT_FALSE(model->at<actnn::nn::Conv2dImpl>(0).weight.requires_grad());
  EXPECT_TRUE(model->at<actnn::nn::Conv2dImpl>(0).bias.requires_grad());
  EXPECT_EQ(model->at<actnn::nn::Conv2dImpl>(0).weight.scalar_type(), at::kBFloat16);
  EXPECT_EQ(model->forward(images().to(at::kBFloat16)).scalar_type(), at::kBFloat16);
}

TEST(Convert, ConvertedModelsClone) {
  Sequential model = small_net();
  actnn::nn::convert(model);
  const auto copy = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(model->clone());
  EXPECT_TRUE(copy->ptr(0)->as<actnn::nn::Conv2d>());
  const at::Tensor input = images();
  const at::Tensor expected = model->forward(input);
  EXPECT_TRUE(bit_equal(copy->forward(input), expected));
  {
    const at::NoGradGuard no_grad;
    copy->at<actnn::nn::LinearImpl>(8).weight.zero_();
  }
  EXPECT_TRUE(bit_equal(model->forward(input), expected));
}

TEST(Convert, ArchivesGoBothWays) {
  Sequential converted = small_net();
  actnn::nn::convert(converted, {.chains = false});
  Sequential original = small_net();
  const auto transfer = [](Sequential& from, Sequential& to) {
    std::stringstream archive;
    torch::save(from, archive);
    torch::load(to, archive);
  };
  transfer(converted, original);
  const at::Tensor input = images();
  EXPECT_TRUE(bit_equal(converted->forward(input), original->forward(input)));
  Sequential other = small_net();
  transfer(other, converted);
  EXPECT_TRUE(bit_equal(converted->forward(input), other->forward(input)));
}

TEST(Convert, KeepsTheNamesOfANamedSequential) {
  Sequential model({{"conv", torch::nn::Conv2d(3, 4, 3)}, {"relu", torch::nn::ReLU()}});
  actnn::nn::convert(model);
  EXPECT_EQ(model->named_children().keys(), (std::vector<std::string>{"conv", "relu"}));
  EXPECT_TRUE(model->named_children()["conv"]->as<actnn::nn::Conv2d>());
  expect_consistent(model);
}

TEST(Convert, ReplacesElementsOfModuleListAndModuleDict) {
  torch::nn::ModuleList list(torch::nn::Linear(3, 4), torch::nn::ReLU());
  actnn::nn::convert(list);
  EXPECT_TRUE(list->ptr<actnn::nn::LinearImpl>(0));
  EXPECT_EQ(list->children()[0], list->ptr(0));
  EXPECT_EQ(list->children()[1], list->ptr(1));
  EXPECT_TRUE(list->clone()->children()[0]->as<actnn::nn::Linear>());

  torch::nn::ModuleDict dict(std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>>{
      {"fc", torch::nn::Linear(3, 4).ptr()}, {"act", torch::nn::ReLU().ptr()}});
  actnn::nn::convert(dict);
  EXPECT_TRUE((*dict)["fc"]->as<actnn::nn::Linear>());
  EXPECT_EQ(dict->named_children()["fc"], (*dict)["fc"]);
  EXPECT_TRUE(dict->clone()->named_children()["act"]->as<actnn::nn::ReLU>());
}

TEST(Convert, RootMayBeAReferenceAPointerAHolderOrAnAnyModule) {
  const Sequential by_reference = small_net();
  EXPECT_EQ(actnn::nn::convert(*by_reference.ptr()).count(ConversionOutcome::kConverted), 8);
  const std::shared_ptr<torch::nn::Module> by_pointer = small_net().ptr();
  EXPECT_EQ(actnn::nn::convert(by_pointer).count(ConversionOutcome::kConverted), 8);

  torch::nn::AnyModule any(torch::nn::Linear(3, 4));
  const at::Tensor weight = any.ptr()->parameters()[0];
  EXPECT_EQ(actnn::nn::convert(any).at("").outcome, ConversionOutcome::kConverted);
  EXPECT_TRUE(any.get<actnn::nn::LinearImpl>().weight.is_same(weight));
}

TEST(Convert, SecondConversionChangesNothing) {
  Sequential model = small_net();
  actnn::nn::convert(model);
  const auto children = model->children();
  const auto report = actnn::nn::convert(model, {.quantization = {.bits = 2}});
  EXPECT_EQ(report.count(ConversionOutcome::kConverted), 0);
  EXPECT_EQ(report.at("0").reason, "already compressed");
  EXPECT_EQ(model->children(), children);
}

}  // namespace
