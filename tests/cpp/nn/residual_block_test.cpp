#include "actnn/nn/residual_block.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include <functional>

namespace {

using actnn::nn::ResidualBlockOptions;

/// What a block computes, from its own parameters, with torch's functions and batch statistics.
at::Tensor exact_norm(const at::Tensor& input, const actnn::nn::BatchNorm2d& norm) {
  return at::batch_norm(input, norm->weight, norm->bias, {}, {}, /*training=*/true, 0.1, norm->options.eps(), false);
}
at::Tensor exact_convolution(const at::Tensor& input, const actnn::nn::Conv2d& conv) {
  const auto& options = conv->options;
  const auto& padding = std::get<torch::ExpandingArray<2>>(options.padding());
  return at::conv2d(input, conv->weight, {}, *options.stride(), *padding, 1, options.groups());
}
template <class Block>
at::Tensor exact_shortcut(const Block& block, const at::Tensor& input) {
  if (!block->downsample) {
    return input;
  }
  const actnn::nn::Conv2d conv(block->downsample->template ptr<actnn::nn::Conv2dImpl>(0));
  const actnn::nn::BatchNorm2d norm(block->downsample->template ptr<actnn::nn::BatchNorm2dImpl>(1));
  return exact_norm(exact_convolution(input, conv), norm);
}
at::Tensor exact(const actnn::nn::BasicBlock& block, const at::Tensor& input) {
  at::Tensor output = at::relu(exact_norm(exact_convolution(input, block->conv1), block->bn1));
  output = exact_norm(exact_convolution(output, block->conv2), block->bn2);
  return at::relu(output + exact_shortcut(block, input));
}
at::Tensor exact(const actnn::nn::Bottleneck& block, const at::Tensor& input) {
  at::Tensor output = at::relu(exact_norm(exact_convolution(input, block->conv1), block->bn1));
  output = at::relu(exact_norm(exact_convolution(output, block->conv2), block->bn2));
  output = exact_norm(exact_convolution(output, block->conv3), block->bn3);
  return at::relu(output + exact_shortcut(block, input));
}

template <class Block>
class ResidualBlock : public testing::Test {};
using Blocks = testing::Types<actnn::nn::BasicBlock, actnn::nn::Bottleneck>;
TYPED_TEST_SUITE(ResidualBlock, Blocks);

std::vector<ResidualBlockOptions> all_options() {
  return {ResidualBlockOptions(16, 16).out_channels(16), ResidualBlockOptions(8, 16),
          ResidualBlockOptions(16, 16).stride(2), ResidualBlockOptions(16, 16).groups(4)};
}

TYPED_TEST(ResidualBlock, ComputesWhatSeparateLayersDo) {
  for (ResidualBlockOptions options : all_options()) {
    torch::manual_seed(1);
    TypeParam block(options.bits(8).output_bits(8));
    const at::Tensor input = at::randn({4, options.in_channels(), 12, 12}).requires_grad_();
    const at::Tensor output = block->forward(input);
    const at::Tensor expected = exact(block, input);
    EXPECT_TRUE(at::allclose(output, expected, 1e-4, 1e-4));
    EXPECT_TRUE(output.is_contiguous(at::MemoryFormat::ChannelsLast));

    std::vector<at::Tensor> wanted{input};
    for (const at::Tensor& parameter : block->parameters()) {
      wanted.push_back(parameter);
    }
    const at::Tensor grad = at::randn_like(expected);
    const auto actual = torch::autograd::grad({output}, wanted, {grad});
    const auto exact_gradients = torch::autograd::grad({expected}, wanted, {grad});
    for (size_t i = 0; i < wanted.size(); ++i) {
      const auto error = (actual[i] - exact_gradients[i]).norm().template item<double>();
      EXPECT_LT(error, 0.05 * exact_gradients[i].norm().template item<double>()) << i;
    }
  }
}

TYPED_TEST(ResidualBlock, HasTorchvisionsNames) {
  TypeParam block(ResidualBlockOptions(8, 16).stride(2));
  std::vector<std::string> names;
  for (const auto& parameter : block->named_parameters()) {
    names.push_back(parameter.key());
  }
  for (const char* name : {"conv1.weight", "bn1.weight", "bn2.bias", "downsample.0.weight", "downsample.1.bias"}) {
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
  }
}

TYPED_TEST(ResidualBlock, EvaluatesWithRunningStatisticsAndKeepsNothing) {
  TypeParam block(ResidualBlockOptions(16, 16));
  const at::Tensor input = at::randn({4, 16, 8, 8});
  block->forward(input);
  block->eval();
  const at::NoGradGuard no_grad;
  const at::Tensor first = block->forward(input);
  EXPECT_TRUE(at::equal(first, block->forward(input)));
  EXPECT_FALSE(first.requires_grad());
}

TYPED_TEST(ResidualBlock, IsCloned) {
  TypeParam block(ResidualBlockOptions(8, 16).stride(2));
  const auto copy = std::dynamic_pointer_cast<typename TypeParam::ContainedType>(block->clone());
  ASSERT_TRUE(copy);
  const at::Tensor input = at::randn({2, 8, 8, 8});
  EXPECT_TRUE(at::equal(copy->forward(input), block->forward(input)));
  EXPECT_FALSE(copy->conv1->weight.is_same(block->conv1->weight));
}

TEST(ConvNormAct2d, ComputesWhatSeparateLayersDo) {
  for (const double slope : {0.0, 0.2, 1.0}) {
    actnn::nn::ConvNormAct2d block(
        actnn::nn::ConvNormAct2dOptions(6, 12, 3).stride(2).padding(1).groups(2).negative_slope(slope).bits(8));
    const at::Tensor input = at::randn({4, 6, 9, 9}).requires_grad_();
    const at::Tensor normalized = exact_norm(exact_convolution(input, block->conv), block->norm);
    const at::Tensor expected = slope == 1.0 ? normalized : at::leaky_relu(normalized, slope);
    const at::Tensor output = block->forward(input);
    EXPECT_TRUE(at::allclose(output, expected, 1e-4, 1e-5));
    const at::Tensor grad = at::randn_like(expected);
    const auto actual = torch::autograd::grad({output}, {input, block->conv->weight}, {grad});
    const auto wanted = torch::autograd::grad({expected}, {input, block->conv->weight}, {grad});
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_LT((actual[i] - wanted[i]).norm().item<double>(), 0.05 * wanted[i].norm().item<double>());
    }
  }
}

TEST(ConvNormAct2d, RefusesASingleBit) {
  actnn::nn::ConvNormAct2d block(actnn::nn::ConvNormAct2dOptions(3, 4, 1).bits(1));
  EXPECT_THROW(block->forward(at::randn({2, 3, 4, 4}).requires_grad_()), c10::ValueError);
}

}  // namespace
