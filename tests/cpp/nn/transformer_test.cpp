#include "actnn/nn/transformer.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/silu.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/transformerlayer.h>
#include <torch/serialize.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

namespace {

using actnn::nn::ActivationKind;
using actnn::nn::TransformerLayer;
using actnn::nn::TransformerLayerOptions;

constexpr int64_t kHidden = 32;

class Transformer : public testing::Test {
 protected:
  Transformer() { torch::manual_seed(1); }

  static TransformerLayerOptions make_options() { return TransformerLayerOptions(kHidden, 4).bits(8); }

  static at::Tensor make_input() { return at::randn({3, 70, kHidden}).requires_grad_(); }

  /// What torch's own modules compute, attention with all its weights included.
  static at::Tensor exact(TransformerLayer& layer, const at::Tensor& input) {
    at::Tensor mask;
    if (layer->options.causal()) {
      mask = at::full({input.size(1), input.size(1)}, -std::numeric_limits<double>::infinity()).triu(1);
    }
    const at::Tensor normalized = layer->norm1->forward(input).transpose(0, 1);
    const at::Tensor attended =
        std::get<0>(layer->self_attn->forward(normalized, normalized, normalized, {}, /*need_weights=*/false, mask));
    const at::Tensor middle = input + attended.transpose(0, 1);
    const at::Tensor inner = layer->linear1->forward(layer->norm2->forward(middle));
    return middle + layer->linear2->forward(activated(layer->options.activation(), inner));
  }

  static at::Tensor activated(ActivationKind kind, const at::Tensor& input) {
    switch (kind) {
      case ActivationKind::kReLU:
        return input.relu();
      case ActivationKind::kLeakyReLU:
        return at::leaky_relu(input);
      default:
        return at::gelu(input);
    }
  }

  static double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
    return ((actual - expected).norm() / expected.norm()).item<double>();
  }

  static std::vector<at::Tensor> with_parameters(const at::Tensor& input, const torch::nn::Module& module) {
    std::vector<at::Tensor> all = module.parameters();
    all.push_back(input);
    return all;
  }
};

TEST_F(Transformer, ComputesWhatTorchsLayersDo) {
  for (const TransformerLayerOptions& options :
       {make_options(), make_options().causal(true), make_options().bias(false).mlp(48),
        make_options().activation(ActivationKind::kReLU), make_options().activation(ActivationKind::kLeakyReLU)}) {
    TransformerLayer layer(options);
    const at::Tensor input = make_input();
    const at::Tensor output = layer->forward(input);
    const at::Tensor expected = exact(layer, input);
    EXPECT_TRUE(at::allclose(output, expected, 1e-4, 1e-5));
    EXPECT_TRUE(output.is_contiguous());

    const std::vector<at::Tensor> wanted = with_parameters(input, *layer);
    const at::Tensor grad = at::randn_like(expected);
    const auto actual = torch::autograd::grad({output}, wanted, {grad});
    const auto exact_gradients = torch::autograd::grad({expected}, wanted, {grad});
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_LT(relative_error(actual[i], exact_gradients[i]), 0.02) << i;
    }
  }
}

TEST_F(Transformer, IsOneNodeThatSavesLess) {
  TransformerLayer layer(make_options().bits(4));
  const at::Tensor input = make_input();
  const at::Tensor output = layer->forward(input);
  const auto& node = output.grad_fn();
  std::vector<const torch::autograd::Node*> behind;
  for (const auto& edge : node->next_edges()) {
    behind.push_back(edge.function.get());
  }
  const auto of_input = torch::autograd::impl::gradient_edge(input).function;
  EXPECT_NE(std::find(behind.begin(), behind.end(), of_input.get()), behind.end());

  // Query, key and value of 6 bits, the result of attention and two norms of 4, the MLP of 5; and groups' parameters.
  const double bits = 3 * 6 + 4 + 2 * 4 + 4 * 5;
  const double bytes = bits / 32.0 * static_cast<double>(input.nbytes());
  EXPECT_GT(static_cast<double>(layer->saved_bytes()), bytes);
  EXPECT_LT(static_cast<double>(layer->saved_bytes()), 1.3 * bytes);
  TransformerLayer again(make_options().bits(4).recompute_attention(true));
  again->forward(input);
  EXPECT_LT(again->saved_bytes(), layer->saved_bytes() - input.nbytes() / 2);
  // The norm in front of the MLP has 5 bits then, one more, and nothing else is kept of it.
  TransformerLayer small(make_options().bits(4).recompute_attention(true).recompute_mlp(true));
  small->forward(input);
  EXPECT_LT(small->saved_bytes(), again->saved_bytes() - (4 * 5 - 1) * input.nbytes() / 32);
  // Attention exactly: 16 bits an element and more.
  TransformerLayer exact(make_options().bits(4).attention_bits(0));
  exact->forward(input);
  EXPECT_GT(exact->saved_bytes(), layer->saved_bytes() + 2 * input.nbytes());
}

TEST_F(Transformer, IsTorchsWithoutCompression) {
  TransformerLayer layer(make_options().causal(true).compressed(false));
  const at::Tensor input = make_input();
  const std::vector<at::Tensor> wanted = with_parameters(input, *layer);
  const at::Tensor expected = exact(layer, input);
  const at::Tensor output = layer->forward(input);
  EXPECT_TRUE(at::allclose(output, expected, 1e-4, 1e-5));
  EXPECT_EQ(layer->saved_bytes(), 0);
  const at::Tensor grad = at::randn_like(expected);
  const auto actual = torch::autograd::grad({output}, wanted, {grad});
  const auto exact_gradients = torch::autograd::grad({expected}, wanted, {grad});
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_LT(relative_error(actual[i], exact_gradients[i]), 1e-4) << i;
  }
}

TEST_F(Transformer, RunsOtherTypesExactly) {
  TransformerLayer layer(make_options());
  layer->to(at::kDouble);
  const at::Tensor input = at::randn({2, 5, kHidden}, at::kDouble).requires_grad_();
  const at::Tensor output = layer->forward(input);
  EXPECT_TRUE(at::allclose(output, exact(layer, input)));
  output.sum().backward();
  EXPECT_TRUE(input.grad().defined());
}

TEST_F(Transformer, DropsOutInTrainingOnly) {
  TransformerLayer layer(make_options().dropout(0.3));
  const at::Tensor input = make_input();
  EXPECT_FALSE(at::equal(layer->forward(input), layer->forward(input)));
  layer->eval();
  const at::Tensor recorded = layer->forward(input);
  EXPECT_TRUE(at::equal(recorded, layer->forward(input)));
  const at::NoGradGuard no_grad;
  const at::Tensor output = layer->forward(input);
  EXPECT_FALSE(output.requires_grad());
  EXPECT_TRUE(at::allclose(recorded, output, 1e-4, 1e-5));
}

TEST_F(Transformer, GradientsFitTheMasksOfDropout) {
  // Along the gradient the loss changes by its squared norm, if the same masks are drawn again.
  TransformerLayer layer(make_options().dropout(0.2));
  const at::Tensor input = make_input();
  const at::Tensor grad = at::randn_like(input);
  const auto loss_of = [&](const at::Tensor& at_input) {
    torch::manual_seed(3);
    return (layer->forward(at_input) * grad).sum();
  };
  const at::Tensor loss = loss_of(input);
  const at::Tensor gradient = torch::autograd::grad({loss}, {input})[0];
  const double square = gradient.square().sum().item<double>();
  const double step = 1e-2 / std::sqrt(square);
  const double difference = (loss_of(input + step * gradient) - loss_of(input - step * gradient)).item<double>();
  EXPECT_NEAR(difference / (2 * step), square, 0.02 * square);
}

TEST_F(Transformer, HasTheParametersOfTorchsEncoderLayer) {
  TransformerLayer layer(make_options());
  const torch::nn::TransformerEncoderLayer theirs(
      torch::nn::TransformerEncoderLayerOptions(kHidden, 4).dim_feedforward(4 * kHidden));
  std::vector<std::string> expected = theirs->named_parameters().keys();
  std::vector<std::string> actual = layer->named_parameters().keys();
  std::sort(expected.begin(), expected.end());
  std::sort(actual.begin(), actual.end());
  EXPECT_EQ(actual, expected);
  for (const auto& parameter : theirs->named_parameters()) {
    EXPECT_EQ(layer->named_parameters()[parameter.key()].sizes(), parameter->sizes()) << parameter.key();
  }
}

TEST_F(Transformer, IsClonedWithParametersOfItsOwn) {
  TransformerLayer layer(make_options());
  const at::Tensor input = make_input();
  const at::Tensor expected = layer->forward(input);
  const auto copy = std::dynamic_pointer_cast<actnn::nn::TransformerLayerImpl>(layer->clone());
  ASSERT_TRUE(copy);
  EXPECT_TRUE(at::equal(copy->forward(input), expected));
  {
    const at::NoGradGuard no_grad;
    copy->linear2->weight.zero_();
  }
  EXPECT_TRUE(at::equal(layer->forward(input), expected));
  EXPECT_FALSE(at::equal(copy->forward(input), expected));
}

TEST_F(Transformer, IsSerialized) {
  TransformerLayer layer(make_options());
  TransformerLayer loaded(make_options());
  const at::Tensor input = make_input();
  EXPECT_FALSE(at::equal(loaded->forward(input), layer->forward(input)));
  std::stringstream stream;
  torch::save(layer, stream);
  torch::load(loaded, stream);
  EXPECT_TRUE(at::equal(loaded->forward(input), layer->forward(input)));
}

TEST_F(Transformer, FollowsAutocastAsTorchsLayersDo) {
  TransformerLayer layer(make_options());
  const at::Tensor input = make_input();
  const at::Tensor in_float = exact(layer, input);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const at::Tensor output = layer->forward(input);
  layer->options.compressed(false);
  const at::Tensor expected = layer->forward(input);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(output.scalar_type(), at::kFloat);
  EXPECT_EQ(expected.scalar_type(), at::kFloat);
  // Sums are not rounded: the error is that of what the products add.
  EXPECT_LT(relative_error(output, in_float), 1.1 * relative_error(expected, in_float));
  const at::Tensor grad = at::randn_like(in_float);
  const std::vector<at::Tensor> wanted = with_parameters(input, *layer);
  const auto actual = torch::autograd::grad({output}, wanted, {grad});
  const auto exact_gradients = torch::autograd::grad({in_float}, wanted, {grad});
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(actual[i].scalar_type(), at::kFloat);
    EXPECT_LT(relative_error(actual[i], exact_gradients[i]), 0.05) << i;
  }
}

TEST_F(Transformer, RefusesWhatMakesNoSense) {
  EXPECT_THROW(TransformerLayer(TransformerLayerOptions(32, 5)), c10::ValueError);
  EXPECT_THROW(TransformerLayer(TransformerLayerOptions(32, 0)), c10::ValueError);
  TransformerLayer layer(make_options());
  EXPECT_THROW(layer->forward(at::randn({70, kHidden})), c10::ValueError);
  EXPECT_THROW(layer->forward(at::randn({3, 70, kHidden + 1})), c10::ValueError);
  TransformerLayer coarse(make_options().bits(1));
  EXPECT_THROW(coarse->forward(make_input()), c10::ValueError);
}

TEST_F(Transformer, AttentionsOfOtherKindsAreInNoChain) {
  using torch::nn::MultiheadAttention;
  using torch::nn::MultiheadAttentionOptions;
  const auto add = [](const MultiheadAttentionOptions& options) {
    actnn::nn::ChainBuilder builder;
    builder.self_attention(builder.input(), MultiheadAttention(options));
  };
  EXPECT_THROW(add(MultiheadAttentionOptions(32, 4).kdim(16).vdim(16)), c10::ValueError);
  EXPECT_THROW(add(MultiheadAttentionOptions(32, 4).add_bias_kv(true)), c10::ValueError);
  EXPECT_THROW(add(MultiheadAttentionOptions(32, 4).add_zero_attn(true)), c10::ValueError);
}

/// A gate, as of SwiGLU.
TEST_F(Transformer, ChainsMultiply) {
  torch::nn::Linear gate(kHidden, 48);
  torch::nn::Linear up(kHidden, 48);
  actnn::nn::ChainBuilder builder;
  const auto active = builder.activation(builder.linear(builder.input(), gate), ActivationKind::kSiLU);
  builder.multiply(active, builder.linear(builder.input(), up));
  const actnn::nn::Chain chain = builder.build(actnn::blocks::PlanOptions::of_bits(8));
  const at::Tensor input = make_input();
  const at::Tensor output = chain.forward(input);
  const at::Tensor expected = at::silu(gate->forward(input)) * up->forward(input);
  EXPECT_TRUE(at::allclose(output, expected, 1e-4, 1e-5));
  const at::Tensor grad = at::randn_like(expected);
  EXPECT_LT(relative_error(torch::autograd::grad({output}, {input}, {grad})[0],
                           torch::autograd::grad({expected}, {input}, {grad})[0]),
            0.02);
}

}  // namespace
