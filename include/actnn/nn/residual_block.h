#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

#include "actnn/nn/batch_norm.h"
#include "actnn/nn/convolution.h"

/// \file
/// Blocks of convolutions whose batch norms run together with the activations behind them (`actnn::batch_norm_act`), so that one
/// packed copy serves the norm, its activation and the convolution that follows. Results are channels_last, whatever the
/// input's layout, and equal those of separate layers up to rounding.

namespace actnn::nn {

/// Options of ConvNormAct2d: those of its convolution, which has no bias, and of what follows.
struct ConvNormAct2dOptions : QuantizationOptions<ConvNormAct2dOptions> {
  ConvNormAct2dOptions(int64_t in_channels, int64_t out_channels, int64_t kernel_size)
      : in_channels_(in_channels), out_channels_(out_channels), kernel_size_(kernel_size) {}

  TORCH_ARG(int64_t, in_channels);
  TORCH_ARG(int64_t, out_channels);
  TORCH_ARG(int64_t, kernel_size);
  TORCH_ARG(int64_t, stride) = 1;
  TORCH_ARG(int64_t, padding) = 0;
  TORCH_ARG(int64_t, groups) = 1;
  /// 0: ReLU; 1: no activation; others: leaky ReLU.
  TORCH_ARG(double, negative_slope) = 0.0;
};

/// Convolution, batch norm, activation: [N, C, H, W]. Children: "conv", "norm".
class ConvNormAct2dImpl : public torch::nn::Cloneable<ConvNormAct2dImpl> {
 public:
  explicit ConvNormAct2dImpl(const ConvNormAct2dOptions& options_);

  void reset() override;
  at::Tensor forward(const at::Tensor& input);

  ConvNormAct2dOptions options;
  Conv2d conv{nullptr};
  BatchNorm2d norm{nullptr};
};
TORCH_MODULE(ConvNormAct2d);

/// Options of residual blocks, with the quantization of what is behind a norm inside (2 bits or more).
struct ResidualBlockOptions : QuantizationOptions<ResidualBlockOptions> {
  ResidualBlockOptions(int64_t in_channels, int64_t channels) : in_channels_(in_channels), channels_(channels) {}

  TORCH_ARG(int64_t, in_channels);
  TORCH_ARG(int64_t, channels);  ///< of the inner convolutions
  TORCH_ARG(int64_t, stride) = 1;
  TORCH_ARG(int64_t, groups) = 1;        ///< of the 3x3 convolution of a bottleneck
  TORCH_ARG(int64_t, out_channels) = 0;  ///< 0: `channels`, in a bottleneck four times as many
  TORCH_ARG(int64_t, output_bits) = 3;   ///< of what is added, and of the sum
};

/// What residual blocks share. Children are named as in torchvision ("conv1", "bn1", ..., "downsample.0", "downsample.1"), so that
/// its weights load. The shortcut has a convolution where the shape changes.
template <class Derived>
class ResidualBlockBase : public torch::nn::Cloneable<Derived> {
 public:
  ResidualBlockOptions options;
  torch::nn::Sequential downsample{nullptr};

 protected:
  explicit ResidualBlockBase(const ResidualBlockOptions& options_) : options(options_) {}

  Conv2d add_convolution(const char* name, int64_t in_channels, int64_t out_channels, int64_t kernel_size,
                         int64_t stride, int64_t groups);
  BatchNorm2d add_norm(const char* name, int64_t channels);
  void add_shortcut(int64_t out_channels);
  at::Tensor add_and_activate(const at::Tensor& output, const at::Tensor& input);
};

/// Two 3x3 convolutions, each with batch norm; ReLU between them, and behind the sum with the input.
class BasicBlockImpl : public ResidualBlockBase<BasicBlockImpl> {
 public:
  explicit BasicBlockImpl(const ResidualBlockOptions& options_);

  void reset() override;
  at::Tensor forward(const at::Tensor& input);

  Conv2d conv1{nullptr}, conv2{nullptr};
  BatchNorm2d bn1{nullptr}, bn2{nullptr};
};
TORCH_MODULE(BasicBlock);

/// Convolutions 1x1, 3x3 (with the stride and the groups) and 1x1, each with batch norm; ReLU between them, and behind the sum.
class BottleneckImpl : public ResidualBlockBase<BottleneckImpl> {
 public:
  explicit BottleneckImpl(const ResidualBlockOptions& options_);

  void reset() override;
  at::Tensor forward(const at::Tensor& input);

  Conv2d conv1{nullptr}, conv2{nullptr}, conv3{nullptr};
  BatchNorm2d bn1{nullptr}, bn2{nullptr}, bn3{nullptr};
};
TORCH_MODULE(Bottleneck);

}  // namespace actnn::nn
