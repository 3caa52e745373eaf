#include "actnn/nn/residual_block.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/hardswish.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
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
    TypeParam block(options.bits(8).output_bits(8).norm_bits(7));
    const at::Tensor input =
        at::randn({4, options.in_channels(), 12, 12}).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_();
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

/// Compares `output` and its gradients for `wanted` with the exact ones.
void expect_close(const at::Tensor& output, const at::Tensor& expected, const std::vector<at::Tensor>& wanted) {
  EXPECT_TRUE(at::allclose(output, expected, 1e-4, 1e-4));
  const at::Tensor grad = at::randn_like(expected);
  const auto actual = torch::autograd::grad({output}, wanted, {grad});
  const auto exact_gradients = torch::autograd::grad({expected}, wanted, {grad});
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto error = (actual[i] - exact_gradients[i]).norm().template item<double>();
    // Scales in front of a norm have no gradient but rounding.
    EXPECT_LT(error, 0.05 * exact_gradients[i].norm().template item<double>() + 0.06 * grad.norm().item<double>()) << i;
  }
}

std::vector<at::Tensor> with_parameters(const at::Tensor& input, const torch::nn::Module& module) {
  std::vector<at::Tensor> all = module.parameters();
  all.push_back(input);
  return all;
}

TEST(ConvNormAct2d, ComputesWhatSeparateLayersDo) {
  using actnn::nn::ActivationKind;
  const std::vector<std::pair<std::optional<ActivationKind>, std::function<at::Tensor(const at::Tensor&)>>> kinds{
      {ActivationKind::kReLU, [](const at::Tensor& z) { return at::relu(z); }},
      {ActivationKind::kLeakyReLU, [](const at::Tensor& z) { return at::leaky_relu(z, 0.2); }},
      {ActivationKind::kReLU6, [](const at::Tensor& z) { return at::hardtanh(z, 0, 6); }},
      {ActivationKind::kSiLU, [](const at::Tensor& z) { return at::silu(z); }},
      {ActivationKind::kHardswish, [](const at::Tensor& z) { return at::hardswish(z); }},
      {std::nullopt, [](const at::Tensor& z) { return z; }}};
  for (const auto& [kind, activation] : kinds) {
    torch::manual_seed(1);
    actnn::nn::ConvNormAct2dOptions options(6, 12, 3);
    options.stride(2).padding(1).groups(2).activation(kind).negative_slope(0.2).bits(8);
    actnn::nn::ConvNormAct2d block(options);
    const at::Tensor input = at::randn({4, 6, 9, 9}).requires_grad_();
    expect_close(block->forward(input), activation(exact_norm(exact_convolution(input, block->conv), block->norm)),
                 with_parameters(input, *block));
  }
}

TEST(Stem, ComputesWhatSeparateLayersDo) {
  torch::manual_seed(1);
  actnn::nn::Stem stem(actnn::nn::ConvNormAct2dOptions(3, 16, 7).stride(2).padding(3).bits(8));
  const at::Tensor input = at::randn({4, 3, 32, 32}).requires_grad_();
  const at::Tensor activated = at::relu(exact_norm(exact_convolution(input, stem->conv1), stem->bn1));
  expect_close(stem->forward(input), at::max_pool2d(activated, 3, 2, 1), with_parameters(input, *stem));
}

TEST(InvertedResidual, ComputesWhatSeparateLayersDo) {
  for (const int64_t ratio : {1, 4}) {
    torch::manual_seed(1);
    actnn::nn::InvertedResidual block(actnn::nn::InvertedResidualOptions(8, 8).expand_ratio(ratio).bits(8));
    const at::Tensor input = at::randn({4, 8, 9, 9}).requires_grad_();
    at::Tensor value = input;
    for (size_t layer = 0; layer + 2 < block->conv->size(); ++layer) {
      const auto pair = block->conv->ptr<torch::nn::SequentialImpl>(layer);
      const actnn::nn::Conv2d conv(pair->ptr<actnn::nn::Conv2dImpl>(0));
      const actnn::nn::BatchNorm2d norm(pair->ptr<actnn::nn::BatchNorm2dImpl>(1));
      value = at::hardtanh(exact_norm(exact_convolution(value, conv), norm), 0, 6);
    }
    const size_t size = block->conv->size();
    const actnn::nn::Conv2d projection(block->conv->ptr<actnn::nn::Conv2dImpl>(size - 2));
    const actnn::nn::BatchNorm2d norm(block->conv->ptr<actnn::nn::BatchNorm2dImpl>(size - 1));
    value = exact_norm(exact_convolution(value, projection), norm) + input;
    expect_close(block->forward(input), value, with_parameters(input, *block));
  }
}

TEST(Chain, RunsTorchsLayers) {
  torch::nn::Conv1d conv(torch::nn::Conv1dOptions(4, 8, 3).padding(1));
  torch::nn::BatchNorm1d norm(torch::nn::BatchNorm1dOptions(8).momentum(std::nullopt));
  actnn::nn::ChainBuilder builder(2);
  const auto value = builder.norm(builder.convolution(builder.add(builder.input(0), builder.input(1)), conv), norm);
  builder.activation(value, actnn::nn::ActivationKind::kReLU);
  const actnn::nn::Chain chain = builder.build({.bits = 8});
  const at::Tensor input = at::randn({4, 4, 10}).requires_grad_();
  const at::Tensor other = at::randn({4, 4, 10});
  const at::Tensor convolved = at::conv1d(input + other, conv->weight, conv->bias, 1, 1);
  const at::Tensor expected =
      at::relu(at::batch_norm(convolved, norm->weight, norm->bias, {}, {}, true, 0, 1e-5, false));
  expect_close(chain.forward({input, other}), expected, {input, conv->weight, norm->weight});
  EXPECT_EQ(norm->num_batches_tracked.item<int64_t>(), 1);
  norm->eval();
  EXPECT_TRUE(at::allclose(chain.forward({input, other}),
                           at::relu(at::batch_norm(convolved, norm->weight, norm->bias, norm->running_mean,
                                                   norm->running_var, false, 0, 1e-5, false)),
                           1e-4, 1e-4));
}

TEST(Chain, SaysWhatIsWrong) {
  EXPECT_THROW(actnn::nn::Chain().forward(at::randn({1, 2})), c10::Error);
  actnn::nn::ChainBuilder builder;
  torch::nn::Conv2d circular(torch::nn::Conv2dOptions(3, 4, 3).padding(1).padding_mode(torch::kCircular));
  EXPECT_THROW(builder.convolution(builder.input(), circular), c10::ValueError);
  torch::nn::Conv2d same(torch::nn::Conv2dOptions(3, 4, 3).padding(torch::kSame));
  EXPECT_THROW(builder.convolution(builder.input(), same), c10::ValueError);
  EXPECT_THROW(actnn::nn::ChainBuilder().build(), c10::ValueError);
  actnn::nn::ConvNormAct2d single_bit(actnn::nn::ConvNormAct2dOptions(3, 4, 1).bits(1));
  EXPECT_THROW(single_bit->forward(at::randn({2, 3, 4, 4})), c10::ValueError);
}

}  // namespace
