#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/pimpl.h>

#include <ostream>

namespace actnn::nn {

using DropoutOptions = torch::nn::DropoutOptions;

/// `torch::nn::Dropout` that keeps 16 bytes for backward. Element probabilities and scaling are torch's; the mask drawn
/// from a seed is another one. `input`: any shape; float32, float16 or bfloat16 are compressed, other types run torch's
/// operation.
class DropoutImpl : public torch::nn::detail::_DropoutNd<DropoutImpl> {
 public:
  using TorchLayer = torch::nn::DropoutImpl;
  using _DropoutNd::_DropoutNd;

  /// A layer with the options and training mode of `source`.
  explicit DropoutImpl(const TorchLayer& source);

  at::Tensor forward(at::Tensor input);

  void pretty_print(std::ostream& stream) const override;
};
TORCH_MODULE(Dropout);

}  // namespace actnn::nn
