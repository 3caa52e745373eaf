#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/pimpl.h>

#include <ostream>

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

}  // namespace actnn::nn
