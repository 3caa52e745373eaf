#pragma once

#include <ATen/core/Tensor.h>
#include <torch/expanding_array.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/pooling.h>
#include <torch/nn/pimpl.h>

#include <cstddef>
#include <ostream>
#include <tuple>

namespace actnn::nn {

using MaxPool1dOptions = torch::nn::MaxPool1dOptions;
using MaxPool2dOptions = torch::nn::MaxPool2dOptions;
using MaxPool3dOptions = torch::nn::MaxPool3dOptions;
using AvgPool1dOptions = torch::nn::AvgPool1dOptions;
using AvgPool2dOptions = torch::nn::AvgPool2dOptions;
using AvgPool3dOptions = torch::nn::AvgPool3dOptions;
using AdaptiveAvgPool1dOptions = torch::nn::AdaptiveAvgPool1dOptions;
using AdaptiveAvgPool2dOptions = torch::nn::AdaptiveAvgPool2dOptions;
using AdaptiveAvgPool3dOptions = torch::nn::AdaptiveAvgPool3dOptions;

namespace detail {

/// A pooling layer: options, no parameters. `TorchLayer` is the torch layer that computes the same.
template <typename Options, typename Derived, typename TorchLayer_>
class PoolImpl : public torch::nn::Cloneable<Derived> {
 public:
  using TorchLayer = TorchLayer_;

  /* implicit */ PoolImpl(const Options& options_) : options(options_) {}

  /// A layer with the options and training mode of `source`.
  explicit PoolImpl(const TorchLayer& source) : options(source.options) { this->train(source.is_training()); }

  void reset() override {}

  Options options;
};

}  // namespace detail

/// `torch::nn::MaxPool2d` that keeps the position of each maximum inside its window for backward: one byte per output
/// element for windows of up to 256 elements. `input`: [N, C, H, W] or [C, H, W]; float32, float16 or bfloat16 are
/// compressed, other types run torch's operation. Result and gradient are torch's, bit for bit.
class MaxPool2dImpl : public detail::PoolImpl<MaxPool2dOptions, MaxPool2dImpl, torch::nn::MaxPool2dImpl> {
 public:
  using PoolImpl::PoolImpl;
  /* implicit */ MaxPool2dImpl(torch::ExpandingArray<2> kernel_size) : PoolImpl(MaxPool2dOptions(kernel_size)) {}

  at::Tensor forward(const at::Tensor& input);

  /// Also the flat indices (int64, y * W + x) of the maxima.
  std::tuple<at::Tensor, at::Tensor> forward_with_indices(const at::Tensor& input);

  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(MaxPool2d);

/// As MaxPool2d, for `input` [N, C, L] or [C, L].
class MaxPool1dImpl : public detail::PoolImpl<MaxPool1dOptions, MaxPool1dImpl, torch::nn::MaxPool1dImpl> {
 public:
  using PoolImpl::PoolImpl;
  /* implicit */ MaxPool1dImpl(torch::ExpandingArray<1> kernel_size) : PoolImpl(MaxPool1dOptions(kernel_size)) {}

  at::Tensor forward(const at::Tensor& input);

  /// Also the indices (int64) of the maxima.
  std::tuple<at::Tensor, at::Tensor> forward_with_indices(const at::Tensor& input);

  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(MaxPool1d);

/// As MaxPool2d, for `input` [N, C, D, H, W] or [C, D, H, W].
class MaxPool3dImpl : public detail::PoolImpl<MaxPool3dOptions, MaxPool3dImpl, torch::nn::MaxPool3dImpl> {
 public:
  using PoolImpl::PoolImpl;
  /* implicit */ MaxPool3dImpl(torch::ExpandingArray<3> kernel_size) : PoolImpl(MaxPool3dOptions(kernel_size)) {}

  at::Tensor forward(const at::Tensor& input);

  /// Also the flat indices (int64, (z * H + y) * W + x) of the maxima.
  std::tuple<at::Tensor, at::Tensor> forward_with_indices(const at::Tensor& input);

  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(MaxPool3d);

/// `torch::nn::AvgPool1d` that keeps shapes only for backward. `input`: [N, C, L] or [C, L]. Result and gradient are
/// torch's, bit for bit.
class AvgPool1dImpl : public detail::PoolImpl<AvgPool1dOptions, AvgPool1dImpl, torch::nn::AvgPool1dImpl> {
 public:
  using PoolImpl::PoolImpl;
  /* implicit */ AvgPool1dImpl(torch::ExpandingArray<1> kernel_size) : PoolImpl(AvgPool1dOptions(kernel_size)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(AvgPool1d);

/// As AvgPool1d, for `input` [N, C, H, W] or [C, H, W].
class AvgPool2dImpl : public detail::PoolImpl<AvgPool2dOptions, AvgPool2dImpl, torch::nn::AvgPool2dImpl> {
 public:
  using PoolImpl::PoolImpl;
  /* implicit */ AvgPool2dImpl(torch::ExpandingArray<2> kernel_size) : PoolImpl(AvgPool2dOptions(kernel_size)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(AvgPool2d);

/// As AvgPool1d, for `input` [N, C, D, H, W] or [C, D, H, W].
class AvgPool3dImpl : public detail::PoolImpl<AvgPool3dOptions, AvgPool3dImpl, torch::nn::AvgPool3dImpl> {
 public:
  using PoolImpl::PoolImpl;
  /* implicit */ AvgPool3dImpl(torch::ExpandingArray<3> kernel_size) : PoolImpl(AvgPool3dOptions(kernel_size)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(AvgPool3d);

/// `torch::nn::AdaptiveAvgPool1d` that keeps shapes only for backward. `input`: [N, C, L] or [C, L]. Result and
/// gradient are torch's, bit for bit.
class AdaptiveAvgPool1dImpl
    : public detail::PoolImpl<AdaptiveAvgPool1dOptions, AdaptiveAvgPool1dImpl, torch::nn::AdaptiveAvgPool1dImpl> {
 public:
  using PoolImpl::PoolImpl;
  /* implicit */ AdaptiveAvgPool1dImpl(torch::ExpandingArray<1> output_size)
      : PoolImpl(AdaptiveAvgPool1dOptions(output_size)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(AdaptiveAvgPool1d);

/// As AdaptiveAvgPool1d, for `input` [N, C, H, W] or [C, H, W]; an output size of none keeps the input's.
class AdaptiveAvgPool2dImpl
    : public detail::PoolImpl<AdaptiveAvgPool2dOptions, AdaptiveAvgPool2dImpl, torch::nn::AdaptiveAvgPool2dImpl> {
 public:
  using PoolImpl::PoolImpl;
  /* implicit */ AdaptiveAvgPool2dImpl(torch::ExpandingArrayWithOptionalElem<2> output_size)
      : PoolImpl(AdaptiveAvgPool2dOptions(output_size)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(AdaptiveAvgPool2d);

/// As AdaptiveAvgPool1d, for `input` [N, C, D, H, W] or [C, D, H, W]; an output size of none keeps the input's.
class AdaptiveAvgPool3dImpl
    : public detail::PoolImpl<AdaptiveAvgPool3dOptions, AdaptiveAvgPool3dImpl, torch::nn::AdaptiveAvgPool3dImpl> {
 public:
  using PoolImpl::PoolImpl;
  /* implicit */ AdaptiveAvgPool3dImpl(torch::ExpandingArrayWithOptionalElem<3> output_size)
      : PoolImpl(AdaptiveAvgPool3dOptions(output_size)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(AdaptiveAvgPool3d);

}  // namespace actnn::nn
