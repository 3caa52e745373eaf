#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <optional>

#include "actnn/nn/batch_norm.h"
#include "actnn/nn/chain.h"
#include "actnn/nn/convolution.h"

/// \file
/// The blocks that convolutional networks are made of, each one node of autograd that keeps packed copies only
/// (nn/chain.h). Tensors are [N, C, H, W]; results have the layout of separate layers' (best in channels_last), and
/// equal them up to rounding.
///
/// Quantization: `bits` (2..8, with 1 that is exact) of copies behind norms and of the input where nobody has a copy of
/// it.

namespace actnn::nn {

/// Options of ConvNormAct2d and Stem: those of the convolution, which has no bias, and of the activation.
struct ConvNormAct2dOptions : QuantizationOptions<ConvNormAct2dOptions> {
  ConvNormAct2dOptions(int64_t in_channels, int64_t out_channels, int64_t kernel_size)
      : in_channels_(in_channels), out_channels_(out_channels), kernel_size_(kernel_size) {}

  TORCH_ARG(int64_t, in_channels);
  TORCH_ARG(int64_t, out_channels);
  TORCH_ARG(int64_t, kernel_size);
  TORCH_ARG(int64_t, stride) = 1;
  TORCH_ARG(int64_t, padding) = 0;
  TORCH_ARG(int64_t, groups) = 1;
  TORCH_ARG(std::optional<ActivationKind>, activation) = ActivationKind::kReLU;  ///< none: the norm is the last
  TORCH_ARG(double, negative_slope) = 0.01;                                      ///< of a leaky ReLU
};

/// Convolution, batch norm, activation. Children: "conv", "norm".
class ConvNormAct2dImpl : public torch::nn::Cloneable<ConvNormAct2dImpl> {
 public:
  explicit ConvNormAct2dImpl(const ConvNormAct2dOptions& options_);

  void reset() override;
  at::Tensor forward(const at::Tensor& input);

  ConvNormAct2dOptions options;
  Conv2d conv{nullptr};
  BatchNorm2d norm{nullptr};

 private:
  Chain chain_;
};
TORCH_MODULE(ConvNormAct2d);

/// The same with a 3x3 max-pooling of stride 2 behind it: where ResNets begin. Children: "conv1", "bn1", as in
/// torchvision.
class StemImpl : public torch::nn::Cloneable<StemImpl> {
 public:
  explicit StemImpl(const ConvNormAct2dOptions& options_);

  void reset() override;
  at::Tensor forward(const at::Tensor& input);

  ConvNormAct2dOptions options;
  Conv2d conv1{nullptr};
  BatchNorm2d bn1{nullptr};

 private:
  Chain chain_;
};
TORCH_MODULE(Stem);

/// Options of residual blocks.
struct ResidualBlockOptions : QuantizationOptions<ResidualBlockOptions> {
  ResidualBlockOptions(int64_t in_channels, int64_t channels) : in_channels_(in_channels), channels_(channels) {}

  TORCH_ARG(int64_t, in_channels);
  TORCH_ARG(int64_t, channels);  ///< of the inner convolutions
  TORCH_ARG(int64_t, stride) = 1;
  TORCH_ARG(int64_t, groups) = 1;                                 ///< of the 3x3 convolution of a bottleneck
  TORCH_ARG(int64_t, out_channels) = 0;                           ///< 0: `channels`, in a bottleneck four times as many
  TORCH_ARG(std::optional<int64_t>, output_bits) = std::nullopt;  ///< of the sum; none: as many as `bits`
  TORCH_ARG(bool, recompute) = true;                              ///< `blocks::PlanOptions::recompute`
  /// `blocks::PlanOptions::norm_bits`; none: one fewer than `bits`, 2 at least
  TORCH_ARG(std::optional<int64_t>, norm_bits) = std::nullopt;
};

/// What residual blocks share. Children are named as in torchvision ("conv1", "bn1", ..., "downsample.0",
/// "downsample.1"), so that its weights load. The shortcut has a convolution where the shape changes.
template <class Derived>
class ResidualBlockBase : public torch::nn::Cloneable<Derived> {
 public:
  at::Tensor forward(const at::Tensor& input);

  ResidualBlockOptions options;
  torch::nn::Sequential downsample{nullptr};

 protected:
  explicit ResidualBlockBase(const ResidualBlockOptions& options_) : options(options_) {}

  Conv2d add_convolution(const char* name, int64_t in_channels, int64_t out_channels, int64_t kernel_size,
                         int64_t stride, int64_t groups);
  BatchNorm2d add_norm(const char* name, int64_t channels);
  void add_shortcut(int64_t out_channels);
  /// Adds the shortcut to `output`, and ReLU.
  Chain with_shortcut(ChainBuilder& builder, Value output);

 private:
  Chain chain_;
};

/// Two 3x3 convolutions, each with batch norm; ReLU between them, and behind the sum with the input.
class BasicBlockImpl : public ResidualBlockBase<BasicBlockImpl> {
 public:
  explicit BasicBlockImpl(const ResidualBlockOptions& options_);

  void reset() override;
  Chain make_chain();

  Conv2d conv1{nullptr}, conv2{nullptr};
  BatchNorm2d bn1{nullptr}, bn2{nullptr};
};
TORCH_MODULE(BasicBlock);

/// Convolutions 1x1, 3x3 (with the stride and the groups) and 1x1, each with batch norm; ReLU between them, and behind
/// the sum.
class BottleneckImpl : public ResidualBlockBase<BottleneckImpl> {
 public:
  explicit BottleneckImpl(const ResidualBlockOptions& options_);

  void reset() override;
  Chain make_chain();

  Conv2d conv1{nullptr}, conv2{nullptr}, conv3{nullptr};
  BatchNorm2d bn1{nullptr}, bn2{nullptr}, bn3{nullptr};
};
TORCH_MODULE(Bottleneck);

/// Options of inverted residuals.
struct InvertedResidualOptions : QuantizationOptions<InvertedResidualOptions> {
  InvertedResidualOptions(int64_t in_channels, int64_t out_channels)
      : in_channels_(in_channels), out_channels_(out_channels) {}

  TORCH_ARG(int64_t, in_channels);
  TORCH_ARG(int64_t, out_channels);
  TORCH_ARG(int64_t, stride) = 1;
  TORCH_ARG(int64_t, expand_ratio) = 6;  ///< 1: no expansion
  TORCH_ARG(ActivationKind, activation) = ActivationKind::kReLU6;
};

/// Of MobileNetV2 (Sandler et al., CVPR 2018, section 3): a 1x1 convolution that expands, a depthwise 3x3 one, a 1x1
/// one that projects, each with batch norm, the first two with activation; the input is added where the shape stays.
/// Children are named as in torchvision: "conv.0.0", "conv.0.1", ...
class InvertedResidualImpl : public torch::nn::Cloneable<InvertedResidualImpl> {
 public:
  explicit InvertedResidualImpl(const InvertedResidualOptions& options_);

  void reset() override;
  at::Tensor forward(const at::Tensor& input);

  InvertedResidualOptions options;
  torch::nn::ModuleList conv{nullptr};

 private:
  Chain make_chain() const;

  Chain chain_;
};
TORCH_MODULE(InvertedResidual);

}  // namespace actnn::nn
