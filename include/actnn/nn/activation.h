#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/pimpl.h>

#include <ostream>
#include <string>

#include "actnn/nn/quantization_options.h"
#include "actnn/nn/quantized_activation.h"
#include "actnn/nn/quantized_module.h"

/// \file
/// Activation functions. `input`: any shape; float32, float16 or bfloat16 are compressed, other types run torch's
/// operation. Results are torch's, bit for bit.

namespace actnn::nn {

using ReLUOptions = torch::nn::ReLUOptions;

/// `torch::nn::ReLU` that keeps one bit per element for backward. Result and gradient are torch's, bit for bit.
/// `input`: any shape; float32, float16 or bfloat16 are compressed, other types run torch's operation.
class ReLUImpl : public torch::nn::Cloneable<ReLUImpl> {
 public:
  using TorchLayer = torch::nn::ReLUImpl;

  explicit ReLUImpl(const ReLUOptions& options_ = {}) : options(options_) {}

  /// A layer with the options and training mode of `source`.
  explicit ReLUImpl(const TorchLayer& source);

  at::Tensor forward(at::Tensor input);

  void reset() override {}
  void pretty_print(std::ostream& stream) const override;

  ReLUOptions options;
};
TORCH_MODULE(ReLU);

using LeakyReLUOptions = torch::nn::LeakyReLUOptions;
using HardtanhOptions = torch::nn::HardtanhOptions;
using ReLU6Options = torch::nn::ReLU6Options;

namespace detail {

/// An activation that is linear on pieces: options, no parameters.
template <typename Options, typename Derived, typename TorchLayer_>
class PiecewiseActivationImpl : public torch::nn::Cloneable<Derived> {
 public:
  using TorchLayer = TorchLayer_;

  explicit PiecewiseActivationImpl(const Options& options_ = {}) : options(options_) {}

  /// A layer with the options and training mode of `source`.
  explicit PiecewiseActivationImpl(const TorchLayer& source) : options(source.options) {
    this->train(source.is_training());
  }

  void reset() override {}

  Options options;
};

}  // namespace detail

/// `torch::nn::LeakyReLU` that keeps one bit per element for backward. The gradient is torch's, bit for bit.
class LeakyReLUImpl
    : public detail::PiecewiseActivationImpl<LeakyReLUOptions, LeakyReLUImpl, torch::nn::LeakyReLUImpl> {
 public:
  using PiecewiseActivationImpl::PiecewiseActivationImpl;
  at::Tensor forward(at::Tensor input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(LeakyReLU);

/// `torch::nn::Hardtanh` that keeps one bit per element for backward. The gradient is torch's, bit for bit.
class HardtanhImpl : public detail::PiecewiseActivationImpl<HardtanhOptions, HardtanhImpl, torch::nn::HardtanhImpl> {
 public:
  using PiecewiseActivationImpl::PiecewiseActivationImpl;
  at::Tensor forward(at::Tensor input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(Hardtanh);

/// `torch::nn::ReLU6` that keeps one bit per element for backward. The gradient is torch's, bit for bit.
class ReLU6Impl : public detail::PiecewiseActivationImpl<ReLU6Options, ReLU6Impl, torch::nn::ReLU6Impl> {
 public:
  using PiecewiseActivationImpl::PiecewiseActivationImpl;
  at::Tensor forward(at::Tensor input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(ReLU6);

/// Options of GELU: those of `torch::nn::GELUOptions` and the quantization of the saved input.
struct GELUOptions : QuantizationOptions<GELUOptions> {
  GELUOptions() = default;

  /// The options of a torch layer.
  explicit GELUOptions(const torch::nn::GELUOptions& other) : approximate_(other.approximate()) {}

  TORCH_ARG(std::string, approximate) = "none";  ///< or "tanh"
};

/// Options of SiLU, Sigmoid and Tanh: the quantization of the saved input or derivative.
struct SmoothActivationOptions : QuantizationOptions<SmoothActivationOptions> {};
using SiLUOptions = SmoothActivationOptions;
using SigmoidOptions = SmoothActivationOptions;
using TanhOptions = SmoothActivationOptions;

/// `torch::nn::GELU` that keeps a quantized copy of its input for backward, of kSmoothBits at least; a layer behind it
/// that needs the output keeps none (actnn/autograd/activation.h).
class GELUImpl : public detail::QuantizedActivationImpl<GELUOptions, GELUImpl, torch::nn::GELUImpl> {
 public:
  static constexpr const char* kName = "actnn::nn::GELU";
  using QuantizedActivationImpl::QuantizedActivationImpl;
  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(GELU);

/// As GELU, for `torch::nn::SiLU`.
class SiLUImpl : public detail::QuantizedActivationImpl<SiLUOptions, SiLUImpl, torch::nn::SiLUImpl> {
 public:
  static constexpr const char* kName = "actnn::nn::SiLU";
  using QuantizedActivationImpl::QuantizedActivationImpl;
  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(SiLU);

/// `torch::nn::Sigmoid` that keeps a quantized copy of its derivative for backward. The gradient is unbiased.
class SigmoidImpl : public detail::QuantizedActivationImpl<SigmoidOptions, SigmoidImpl, torch::nn::SigmoidImpl> {
 public:
  static constexpr const char* kName = "actnn::nn::Sigmoid";
  using QuantizedActivationImpl::QuantizedActivationImpl;
  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(Sigmoid);

/// As Sigmoid, for `torch::nn::Tanh`.
class TanhImpl : public detail::QuantizedActivationImpl<TanhOptions, TanhImpl, torch::nn::TanhImpl> {
 public:
  static constexpr const char* kName = "actnn::nn::Tanh";
  using QuantizedActivationImpl::QuantizedActivationImpl;
  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(Tanh);

/// Options of PReLU: those of `torch::nn::PReLUOptions` and the quantization of the saved input.
struct PReLUOptions : QuantizationOptions<PReLUOptions> {
  PReLUOptions() = default;

  /// The options of a torch layer.
  explicit PReLUOptions(const torch::nn::PReLUOptions& other)
      : num_parameters_(other.num_parameters()), init_(other.init()) {}

  TORCH_ARG(int64_t, num_parameters) = 1;
  TORCH_ARG(double, init) = 0.25;
};

/// `torch::nn::PReLU` that keeps one bit per element and a quantized copy of the negative part of its input for
/// backward. The gradient of input is torch's, bit for bit; that of weight is unbiased. The parameter, its name and the
/// archives are those of torch's layer.
class PReLUImpl : public torch::nn::Cloneable<PReLUImpl>, public QuantizedModule {
 public:
  using TorchLayer = torch::nn::PReLUImpl;

  explicit PReLUImpl(const PReLUOptions& options_ = {});

  /// A layer over the very tensor of `source`: its parameter (not a copy), options and training mode.
  explicit PReLUImpl(const TorchLayer& source, const Quantization& quantization = {});

  at::Tensor forward(const at::Tensor& input);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;
  Quantization& quantization() noexcept override { return options.quantization(); }

  PReLUOptions options;
  at::Tensor weight;  ///< [num_parameters]
};
TORCH_MODULE(PReLU);

}  // namespace actnn::nn
