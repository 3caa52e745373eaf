#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "actnn/core/activation.h"
#include "actnn/nn/chain.h"
#include "actnn/nn/quantization_options.h"

namespace actnn::nn {

/// Options of a transformer layer. Of the quantization `bits` (2..8) and `rounding` count.
struct TransformerLayerOptions : QuantizationOptions<TransformerLayerOptions> {
  TransformerLayerOptions(int64_t hidden, int64_t heads) : hidden_(hidden), heads_(heads) {}

  TORCH_ARG(int64_t, hidden);                             ///< features of input and output
  TORCH_ARG(int64_t, heads);                              ///< of attention; they divide the features among them
  TORCH_ARG(std::optional<int64_t>, mlp) = std::nullopt;  ///< features between the linear layers; none: 4 * hidden
  TORCH_ARG(double, dropout) = 0.0;                       ///< of attention's weights, and in front of both sums
  TORCH_ARG(bool, causal) = false;                        ///< a position sees itself and those before it
  TORCH_ARG(bool, bias) = true;                           ///< of linear layers
  TORCH_ARG(double, eps) = 1e-5;                          ///< of layer norms
  TORCH_ARG(ActivationKind, activation) = ActivationKind::kGELU;
  /// `blocks::PlanOptions::smooth_bits`; none: 5, or as many as `bits` if those are more
  TORCH_ARG(std::optional<int64_t>, smooth_bits) = std::nullopt;
  /// `blocks::PlanOptions::attention_bits`; none: 6, or as many as `bits` if those are more
  TORCH_ARG(std::optional<int64_t>, attention_bits) = std::nullopt;
  TORCH_ARG(bool, recompute_attention) = false;  ///< `blocks::PlanOptions::recompute_attention`
  TORCH_ARG(bool, recompute_mlp) = false;        ///< `blocks::PlanOptions::recompute_mlp`
  TORCH_ARG(bool, compressed) = true;            ///< false: torch's layers run, one by one, and save what they save
};

/// A transformer layer with norms in front (pre-norm), for [N, length, hidden] -> the same:
///
///     x = x + dropout(attention(norm1(x)))
///     y = x + dropout(linear2(activation(linear1(norm2(x)))))
///
/// Children are torch's layers, with the names of `torch.nn.TransformerEncoderLayer`, so that the weights of one with
/// `norm_first=True` load: "self_attn" (of the layout `batch_first`), "linear1", "linear2", "norm1", "norm2".
/// Initialized as by their layers.
///
/// While gradients are recorded, all is one node of autograd (nn/chain.h), whose result equals the layers' up to
/// rounding (dropout draws another mask), and whose gradients are unbiased up to the variance of the copies of the
/// activation's input and of query and key. Without gradients, for other types than
/// float32, float16 and bfloat16, and with `compressed` false the layers run one by one. `compressed` may change at any
/// time, other options before the first forward. Under autocast norms and sums are in float32, as with torch's layers.
///
/// Errors (c10::ValueError): heads that do not divide the features; an input of another shape; bits out of range.
class TransformerLayerImpl : public torch::nn::Cloneable<TransformerLayerImpl> {
 public:
  TransformerLayerImpl(int64_t hidden, int64_t heads) : TransformerLayerImpl(TransformerLayerOptions(hidden, heads)) {}
  explicit TransformerLayerImpl(const TransformerLayerOptions& options_);

  void reset() override;
  at::Tensor forward(const at::Tensor& input);

  /// What is done and saved in training, as JSON (blocks/plan.h).
  std::string plan();
  /// Bytes that the last forward saved as one node; 0 before.
  int64_t saved_bytes() const { return chain_.saved_bytes(); }

  TransformerLayerOptions options;
  torch::nn::LayerNorm norm1{nullptr}, norm2{nullptr};
  torch::nn::MultiheadAttention self_attn{nullptr};
  torch::nn::Linear linear1{nullptr}, linear2{nullptr};

 private:
  const Chain& chain();
  Chain make_chain();
  at::Tensor run_layers(const at::Tensor& input);
  at::Tensor attend(const at::Tensor& input);

  Chain chain_;
};
TORCH_MODULE(TransformerLayer);

}  // namespace actnn::nn
