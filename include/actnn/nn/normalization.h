#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <utility>
#include <vector>

#include "actnn/nn/quantization_options.h"
#include "actnn/nn/quantized_module.h"

/// \file
/// Normalizations by the statistics of a sample's own elements, with quantized copies of their inputs for backward.
/// `input` is float32, float16 or bfloat16; other types run torch's operation. Results, running statistics and
/// gradients of bias are torch's, bit for bit; `actnn/autograd/normalization.h` says what the other gradients are.
/// Parameters, buffers, their names and the archives are those of torch's layers.

namespace actnn::nn {

/// Options of LayerNorm: those of `torch::nn::LayerNormOptions` and the quantization of the saved input.
struct LayerNormOptions : QuantizationOptions<LayerNormOptions> {
  /* implicit */ LayerNormOptions(std::vector<int64_t> normalized_shape)
      : normalized_shape_(std::move(normalized_shape)) {}

  /// The options of a torch layer.
  explicit LayerNormOptions(const torch::nn::LayerNormOptions& other)
      : normalized_shape_(other.normalized_shape()),
        eps_(other.eps()),
        elementwise_affine_(other.elementwise_affine()) {}

  TORCH_ARG(std::vector<int64_t>, normalized_shape);
  TORCH_ARG(double, eps) = 1e-5;
  TORCH_ARG(bool, elementwise_affine) = true;
};

/// `torch::nn::LayerNorm`. `input`: [..., *normalized_shape].
class LayerNormImpl : public torch::nn::Cloneable<LayerNormImpl>, public QuantizedModule {
 public:
  using TorchLayer = torch::nn::LayerNormImpl;

  explicit LayerNormImpl(const LayerNormOptions& options_);

  /// A layer over the very tensors of `source`: its parameters (not copies), options and training mode.
  explicit LayerNormImpl(const TorchLayer& source, const Quantization& quantization = {});

  at::Tensor forward(const at::Tensor& input);

  void reset() override;
  void reset_parameters();
  void pretty_print(std::ostream& stream) const override;
  Quantization& quantization() noexcept override { return options.quantization(); }

  LayerNormOptions options;
  at::Tensor weight, bias;  ///< normalized_shape, or undefined (`elementwise_affine` false)
};
TORCH_MODULE(LayerNorm);

/// Options of GroupNorm: those of `torch::nn::GroupNormOptions` and the quantization of the saved input.
struct GroupNormOptions : QuantizationOptions<GroupNormOptions> {
  GroupNormOptions(int64_t num_groups, int64_t num_channels) : num_groups_(num_groups), num_channels_(num_channels) {}

  /// The options of a torch layer.
  explicit GroupNormOptions(const torch::nn::GroupNormOptions& other)
      : num_groups_(other.num_groups()),
        num_channels_(other.num_channels()),
        eps_(other.eps()),
        affine_(other.affine()) {}

  TORCH_ARG(int64_t, num_groups);
  TORCH_ARG(int64_t, num_channels);
  TORCH_ARG(double, eps) = 1e-5;
  TORCH_ARG(bool, affine) = true;
};

/// `torch::nn::GroupNorm`. `input`: [N, num_channels, ...].
class GroupNormImpl : public torch::nn::Cloneable<GroupNormImpl>, public QuantizedModule {
 public:
  using TorchLayer = torch::nn::GroupNormImpl;

  GroupNormImpl(int64_t num_groups, int64_t num_channels) : GroupNormImpl(GroupNormOptions(num_groups, num_channels)) {}
  explicit GroupNormImpl(const GroupNormOptions& options_);

  /// A layer over the very tensors of `source`: its parameters (not copies), options and training mode.
  explicit GroupNormImpl(const TorchLayer& source, const Quantization& quantization = {});

  at::Tensor forward(const at::Tensor& input);

  void reset() override;
  void reset_parameters();
  void pretty_print(std::ostream& stream) const override;
  Quantization& quantization() noexcept override { return options.quantization(); }

  GroupNormOptions options;
  at::Tensor weight, bias;  ///< [num_channels], or undefined (`affine` false)
};
TORCH_MODULE(GroupNorm);

/// Options of instance norms: those of `torch::nn::InstanceNormOptions` and the quantization of the saved input.
struct InstanceNormOptions : QuantizationOptions<InstanceNormOptions> {
  /* implicit */ InstanceNormOptions(int64_t num_features) : num_features_(num_features) {}

  /// The options of a torch layer.
  explicit InstanceNormOptions(const torch::nn::InstanceNormOptions& other)
      : num_features_(other.num_features()),
        eps_(other.eps()),
        momentum_(other.momentum()),
        affine_(other.affine()),
        track_running_stats_(other.track_running_stats()) {}

  TORCH_ARG(int64_t, num_features);
  TORCH_ARG(double, eps) = 1e-5;
  TORCH_ARG(double, momentum) = 0.1;
  TORCH_ARG(bool, affine) = false;
  TORCH_ARG(bool, track_running_stats) = false;
};

using InstanceNorm1dOptions = InstanceNormOptions;
using InstanceNorm2dOptions = InstanceNormOptions;
using InstanceNorm3dOptions = InstanceNormOptions;

namespace detail {

/// What the instance norms over `D` spatial dimensions share. `TorchLayer` is the torch layer that computes the same.
template <size_t D, typename Derived, typename TorchLayer_>
class InstanceNormNdImpl : public torch::nn::Cloneable<Derived>, public QuantizedModule {
 public:
  using TorchLayer = TorchLayer_;

  explicit InstanceNormNdImpl(const InstanceNormOptions& options_);

  /// A layer over the very tensors of `source`: its parameters and buffers (not copies), options and training mode.
  explicit InstanceNormNdImpl(const TorchLayer& source, const Quantization& quantization = {});

  void reset() override;
  void reset_parameters();
  void reset_running_stats();
  void pretty_print(std::ostream& stream) const override;
  Quantization& quantization() noexcept override { return options.quantization(); }

  InstanceNormOptions options;
  /// [num_features], or undefined (`affine` false).
  at::Tensor weight, bias;
  /// [num_features], or undefined (`track_running_stats` false).
  at::Tensor running_mean, running_var;
  /// int64 scalar, as in torch never written; or undefined (`track_running_stats` false).
  at::Tensor num_batches_tracked;

 protected:
  at::Tensor normalize(const at::Tensor& input);
};

}  // namespace detail

/// `torch::nn::InstanceNorm1d`. `input`: [N, C, L] or [C, L].
class InstanceNorm1dImpl : public detail::InstanceNormNdImpl<1, InstanceNorm1dImpl, torch::nn::InstanceNorm1dImpl> {
 public:
  using InstanceNormNdImpl::InstanceNormNdImpl;
  at::Tensor forward(const at::Tensor& input) { return normalize(input); }
};
TORCH_MODULE(InstanceNorm1d);

/// As InstanceNorm1d, for `input` [N, C, H, W] or [C, H, W].
class InstanceNorm2dImpl : public detail::InstanceNormNdImpl<2, InstanceNorm2dImpl, torch::nn::InstanceNorm2dImpl> {
 public:
  using InstanceNormNdImpl::InstanceNormNdImpl;
  at::Tensor forward(const at::Tensor& input) { return normalize(input); }
};
TORCH_MODULE(InstanceNorm2d);

/// As InstanceNorm1d, for `input` [N, C, D, H, W] or [C, D, H, W].
class InstanceNorm3dImpl : public detail::InstanceNormNdImpl<3, InstanceNorm3dImpl, torch::nn::InstanceNorm3dImpl> {
 public:
  using InstanceNormNdImpl::InstanceNormNdImpl;
  at::Tensor forward(const at::Tensor& input) { return normalize(input); }
};
TORCH_MODULE(InstanceNorm3d);

}  // namespace actnn::nn
