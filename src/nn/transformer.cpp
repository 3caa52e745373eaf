#include "actnn/nn/transformer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <vector>

#include "src/ops/activation_functions.h"
#include "src/ops/checks.h"

namespace actnn::nn {
namespace {

/// Whether a block runs with such an input: gradients are recorded, and there are copies of its type.
bool is_for_blocks(const at::Tensor& input) {
  return at::GradMode::is_enabled() && input.layout() == at::kStrided && (input.is_cpu() || input.is_cuda()) &&
         is_compressible(input.scalar_type()) && input.numel() > 0;
}

}  // namespace

TransformerLayerImpl::TransformerLayerImpl(const TransformerLayerOptions& options_) : options(options_) {
  TORCH_CHECK_VALUE(options.hidden() > 0 && options.heads() > 0 && options.hidden() % options.heads() == 0,
                    "TransformerLayer: the heads must divide the features, got ", options.heads(), " heads and ",
                    options.hidden(), " features");
  TransformerLayerImpl::reset();
}

void TransformerLayerImpl::reset() {
  const int64_t hidden = options.hidden();
  const int64_t mlp = options.mlp().value_or(4 * hidden);
  const auto linear = [&](int64_t in_features, int64_t out_features) {
    return torch::nn::Linear(torch::nn::LinearOptions(in_features, out_features).bias(options.bias()));
  };
  const auto norm = [&] { return torch::nn::LayerNorm(torch::nn::LayerNormOptions({hidden}).eps(options.eps())); };
  self_attn = register_module(
      "self_attn", torch::nn::MultiheadAttention(torch::nn::MultiheadAttentionOptions(hidden, options.heads())
                                                     .dropout(options.dropout())
                                                     .bias(options.bias())));
  linear1 = register_module("linear1", linear(hidden, mlp));
  linear2 = register_module("linear2", linear(mlp, hidden));
  norm1 = register_module("norm1", norm());
  norm2 = register_module("norm2", norm());
  chain_ = {};
}

at::Tensor TransformerLayerImpl::forward(const at::Tensor& input) {
  TORCH_CHECK_VALUE(input.defined() && input.dim() == 3 && input.size(2) == options.hidden(),
                    "TransformerLayer: the input must have the shape [N, length, ", options.hidden(), "], got ",
                    input.defined() ? input.sizes() : at::IntArrayRef());
  return options.compressed() && is_for_blocks(input) ? chain().forward(input) : run_layers(input);
}

std::string TransformerLayerImpl::plan() { return chain().plan(); }

const Chain& TransformerLayerImpl::chain() {
  if (!chain_) {
    chain_ = make_chain();
  }
  return chain_;
}

Chain TransformerLayerImpl::make_chain() {
  ChainBuilder builder;
  const auto add_to = [&](Value residual, Value value) {
    if (options.dropout() > 0) {
      value = builder.dropout(value, options.dropout(), [layer = self_attn.ptr()] { return layer->is_training(); });
    }
    return builder.add(residual, value);
  };
  const Value input = builder.input();
  const Value middle =
      add_to(input, builder.self_attention(builder.layer_norm(input, norm1), self_attn, options.causal()));
  const Value inner = builder.linear(builder.layer_norm(middle, norm2), linear1);
  add_to(middle, builder.linear(builder.activation(inner, options.activation()), linear2));

  blocks::PlanOptions plan = blocks::PlanOptions::of_bits(options.bits());
  plan.rounding = options.rounding();
  plan.smooth_bits = options.smooth_bits().value_or(plan.smooth_bits);
  plan.attention_bits = options.attention_bits().value_or(plan.attention_bits);
  plan.recompute_attention = options.recompute_attention();
  plan.recompute_mlp = options.recompute_mlp();
  return builder.build(plan);
}

at::Tensor TransformerLayerImpl::run_layers(const at::Tensor& input) {
  const auto dropped = [&](const at::Tensor& value) {
    return options.dropout() > 0 ? at::dropout(value, options.dropout(), is_training()) : value;
  };
  const at::Tensor middle = input + dropped(attend(norm1->forward(input)));
  const at::Tensor inner = activate(options.activation(), linear1->forward(norm2->forward(middle)));
  return middle + dropped(linear2->forward(inner));
}

/// Not the layer's own forward: it computes the weights of attention one by one.
at::Tensor TransformerLayerImpl::attend(const at::Tensor& input) {
  std::vector<at::Tensor> parts = at::linear(input, self_attn->in_proj_weight, self_attn->in_proj_bias).chunk(3, -1);
  for (at::Tensor& part : parts) {
    part = part.unflatten(2, {options.heads(), options.hidden() / options.heads()}).transpose(1, 2);
  }
  const at::Tensor result = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {},
                                                             is_training() ? options.dropout() : 0.0, options.causal());
  return self_attn->out_proj->forward(result.transpose(1, 2).flatten(2));
}

}  // namespace actnn::nn
