#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <ostream>

#include "actnn/nn/quantization_options.h"
#include "actnn/nn/quantized_activation.h"

namespace actnn::nn {

/// Options of Softmax: those of `torch::nn::SoftmaxOptions` and the quantization of the saved output.
struct SoftmaxOptions : QuantizationOptions<SoftmaxOptions> {
  /* implicit */ SoftmaxOptions(int64_t dim) : dim_(dim) {}

  /// The options of a torch layer.
  explicit SoftmaxOptions(const torch::nn::SoftmaxOptions& other) : dim_(other.dim()) {}

  TORCH_ARG(int64_t, dim);
};

/// Options of LogSoftmax: those of `torch::nn::LogSoftmaxOptions` and the quantization of the saved exponential of the
/// output.
struct LogSoftmaxOptions : QuantizationOptions<LogSoftmaxOptions> {
  /* implicit */ LogSoftmaxOptions(int64_t dim) : dim_(dim) {}

  /// The options of a torch layer.
  explicit LogSoftmaxOptions(const torch::nn::LogSoftmaxOptions& other) : dim_(other.dim()) {}

  TORCH_ARG(int64_t, dim);
};

/// Options of Softmax2d: the quantization of the saved output.
struct Softmax2dOptions : QuantizationOptions<Softmax2dOptions> {};

/// `torch::nn::Softmax` that keeps two quantized copies of its output for backward. `input`: any shape; float32,
/// float16 or bfloat16 are compressed, other types run torch's operation. The result is torch's, bit for bit; the
/// gradient is unbiased.
class SoftmaxImpl : public detail::QuantizedActivationImpl<SoftmaxOptions, SoftmaxImpl, torch::nn::SoftmaxImpl> {
 public:
  static constexpr const char* kName = "actnn::nn::Softmax";
  using QuantizedActivationImpl::QuantizedActivationImpl;
  explicit SoftmaxImpl(int64_t dim) : QuantizedActivationImpl(SoftmaxOptions(dim)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(Softmax);

/// As Softmax over the channels of `input` [N, C, H, W] or [C, H, W].
class Softmax2dImpl
    : public detail::QuantizedActivationImpl<Softmax2dOptions, Softmax2dImpl, torch::nn::Softmax2dImpl> {
 public:
  static constexpr const char* kName = "actnn::nn::Softmax2d";
  using QuantizedActivationImpl::QuantizedActivationImpl;

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(Softmax2d);

/// `torch::nn::LogSoftmax` that keeps a quantized copy of its output's exponential; else as Softmax.
class LogSoftmaxImpl
    : public detail::QuantizedActivationImpl<LogSoftmaxOptions, LogSoftmaxImpl, torch::nn::LogSoftmaxImpl> {
 public:
  static constexpr const char* kName = "actnn::nn::LogSoftmax";
  using QuantizedActivationImpl::QuantizedActivationImpl;
  explicit LogSoftmaxImpl(int64_t dim) : QuantizedActivationImpl(LogSoftmaxOptions(dim)) {}

  at::Tensor forward(const at::Tensor& input);
  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(LogSoftmax);

}  // namespace actnn::nn
