#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>
#include <torch/expanding_array.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/options/conv.h>
#include <torch/nn/pimpl.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <utility>
#include <variant>

#include "actnn/nn/quantization_options.h"
#include "actnn/nn/quantized_module.h"

namespace actnn::nn {

/// Options of a convolution over `D` spatial dimensions: those of `torch::nn::ConvOptions`, with the same names and
/// defaults, and the quantization of the saved input.
template <size_t D>
struct ConvOptions : QuantizationOptions<ConvOptions<D>> {
  using padding_t = torch::nn::detail::conv_padding_t<D>;
  using padding_mode_t = torch::nn::detail::conv_padding_mode_t;
  static constexpr bool kTransposed = false;

  ConvOptions(int64_t in_channels, int64_t out_channels, torch::ExpandingArray<D> kernel_size)
      : in_channels_(in_channels), out_channels_(out_channels), kernel_size_(std::move(kernel_size)) {}

  /// The options of a torch layer.
  explicit ConvOptions(const torch::nn::detail::ConvNdOptions<D>& other)
      : ConvOptions(other.in_channels(), other.out_channels(), other.kernel_size()) {
    stride(other.stride()).padding(other.padding()).dilation(other.dilation()).groups(other.groups());
    bias(other.bias()).padding_mode(other.padding_mode());
  }

  TORCH_ARG(int64_t, in_channels);
  TORCH_ARG(int64_t, out_channels);
  TORCH_ARG(torch::ExpandingArray<D>, kernel_size);
  TORCH_ARG(torch::ExpandingArray<D>, stride) = 1;
  TORCH_ARG(padding_t, padding) = torch::ExpandingArray<D>(0);
  TORCH_ARG(torch::ExpandingArray<D>, dilation) = 1;
  TORCH_ARG(int64_t, groups) = 1;
  TORCH_ARG(bool, bias) = true;
  TORCH_ARG(padding_mode_t, padding_mode) = torch::kZeros;

 public:
  ConvOptions& padding(std::initializer_list<int64_t> values) {
    return padding(padding_t(torch::ExpandingArray<D>(values)));
  }
};

using Conv1dOptions = ConvOptions<1>;
using Conv2dOptions = ConvOptions<2>;
using Conv3dOptions = ConvOptions<3>;

/// Options of a transposed convolution over `D` spatial dimensions: those of `torch::nn::ConvTransposeOptions`, with
/// the same names and defaults, and the quantization of the saved input.
template <size_t D>
struct ConvTransposeOptions : QuantizationOptions<ConvTransposeOptions<D>> {
  using padding_mode_t = torch::nn::detail::conv_padding_mode_t;
  static constexpr bool kTransposed = true;

  ConvTransposeOptions(int64_t in_channels, int64_t out_channels, torch::ExpandingArray<D> kernel_size)
      : in_channels_(in_channels), out_channels_(out_channels), kernel_size_(std::move(kernel_size)) {}

  /// The options of a torch layer.
  explicit ConvTransposeOptions(const torch::nn::detail::ConvNdOptions<D>& other)
      : ConvTransposeOptions(other.in_channels(), other.out_channels(), other.kernel_size()) {
    stride(other.stride()).padding(std::get<torch::ExpandingArray<D>>(other.padding()));
    output_padding(other.output_padding()).groups(other.groups()).bias(other.bias());
    dilation(other.dilation()).padding_mode(other.padding_mode());
  }

  TORCH_ARG(int64_t, in_channels);
  TORCH_ARG(int64_t, out_channels);
  TORCH_ARG(torch::ExpandingArray<D>, kernel_size);
  TORCH_ARG(torch::ExpandingArray<D>, stride) = 1;
  TORCH_ARG(torch::ExpandingArray<D>, padding) = 0;
  TORCH_ARG(torch::ExpandingArray<D>, output_padding) = 0;
  TORCH_ARG(int64_t, groups) = 1;
  TORCH_ARG(bool, bias) = true;
  TORCH_ARG(torch::ExpandingArray<D>, dilation) = 1;
  TORCH_ARG(padding_mode_t, padding_mode) = torch::kZeros;
};

using ConvTranspose1dOptions = ConvTransposeOptions<1>;
using ConvTranspose2dOptions = ConvTransposeOptions<2>;
using ConvTranspose3dOptions = ConvTransposeOptions<3>;

namespace detail {

/// What all convolutions share: parameters, their registration and initialization, and printing. `TorchLayer` is the
/// torch layer that computes the same.
template <size_t D, typename Options, typename Derived, typename TorchLayer_>
class ConvNdImpl : public torch::nn::Cloneable<Derived>, public QuantizedModule {
 public:
  using TorchLayer = TorchLayer_;
  static constexpr bool kTransposed = Options::kTransposed;

  ConvNdImpl(int64_t in_channels, int64_t out_channels, torch::ExpandingArray<D> kernel_size);

  /// Draws the parameters as torch's layer does: the same seed gives the same parameters.
  explicit ConvNdImpl(const Options& options_);

  /// A layer over the very tensors of `source`: its parameters (not copies), options and training mode.
  explicit ConvNdImpl(const TorchLayer& source, const Quantization& quantization = {});

  void reset() override;
  void reset_parameters();
  void pretty_print(std::ostream& stream) const override;
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
  Quantization& quantization() noexcept override { return options.quantization(); }

  Options options;
  /// [out_channels, in_channels / groups, ...]; transposed: [in_channels, out_channels / groups, ...].
  at::Tensor weight;
  /// [out_channels], or undefined.
  at::Tensor bias;

 private:
  void check_options() const;
  std::optional<SchemeOptions> scheme_options() const override;
};

}  // namespace detail

/// `torch::nn::Conv1d` that keeps a quantized copy of its input for backward. `input`: [N, C_in, L] or [C_in, L],
/// float32, float16 or bfloat16. Result and gradients of input and bias are torch's, bit for bit; the gradient of
/// weight is unbiased. Parameters, their names, their initialization and the archives are those of torch's layer.
class Conv1dImpl : public detail::ConvNdImpl<1, Conv1dOptions, Conv1dImpl, torch::nn::Conv1dImpl> {
 public:
  using ConvNdImpl::ConvNdImpl;
  at::Tensor forward(const at::Tensor& input);
};
TORCH_MODULE(Conv1d);

/// As Conv1d, for `input` [N, C_in, H, W] or [C_in, H, W].
class Conv2dImpl : public detail::ConvNdImpl<2, Conv2dOptions, Conv2dImpl, torch::nn::Conv2dImpl> {
 public:
  using ConvNdImpl::ConvNdImpl;
  at::Tensor forward(const at::Tensor& input);
};
TORCH_MODULE(Conv2d);

/// As Conv1d, for `input` [N, C_in, D, H, W] or [C_in, D, H, W].
class Conv3dImpl : public detail::ConvNdImpl<3, Conv3dOptions, Conv3dImpl, torch::nn::Conv3dImpl> {
 public:
  using ConvNdImpl::ConvNdImpl;
  at::Tensor forward(const at::Tensor& input);
};
TORCH_MODULE(Conv3d);

/// `torch::nn::ConvTranspose1d` that keeps a quantized copy of its input for backward.
///
/// `output_size`, if given, is the length of the result, alone or after N and C; it replaces the option
/// `output_padding` and must be one of the `stride` lengths that the geometry allows.
class ConvTranspose1dImpl
    : public detail::ConvNdImpl<1, ConvTranspose1dOptions, ConvTranspose1dImpl, torch::nn::ConvTranspose1dImpl> {
 public:
  using ConvNdImpl::ConvNdImpl;
  at::Tensor forward(const at::Tensor& input, const std::optional<at::IntArrayRef>& output_size = std::nullopt);

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(std::optional<at::IntArrayRef>())})
};
TORCH_MODULE(ConvTranspose1d);

/// As ConvTranspose1d, for `input` [N, C_in, H, W] or [C_in, H, W].
class ConvTranspose2dImpl
    : public detail::ConvNdImpl<2, ConvTranspose2dOptions, ConvTranspose2dImpl, torch::nn::ConvTranspose2dImpl> {
 public:
  using ConvNdImpl::ConvNdImpl;
  at::Tensor forward(const at::Tensor& input, const std::optional<at::IntArrayRef>& output_size = std::nullopt);

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(std::optional<at::IntArrayRef>())})
};
TORCH_MODULE(ConvTranspose2d);

/// As ConvTranspose1d, for `input` [N, C_in, D, H, W] or [C_in, D, H, W].
class ConvTranspose3dImpl
    : public detail::ConvNdImpl<3, ConvTranspose3dOptions, ConvTranspose3dImpl, torch::nn::ConvTranspose3dImpl> {
 public:
  using ConvNdImpl::ConvNdImpl;
  at::Tensor forward(const at::Tensor& input, const std::optional<at::IntArrayRef>& output_size = std::nullopt);

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(std::optional<at::IntArrayRef>())})
};
TORCH_MODULE(ConvTranspose3d);

}  // namespace actnn::nn
