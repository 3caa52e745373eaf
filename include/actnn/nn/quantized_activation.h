#pragma once

#include <torch/nn/cloneable.h>

#include "actnn/nn/quantization_options.h"
#include "actnn/nn/quantized_module.h"

namespace actnn::nn::detail {

/// A layer without parameters that saves a quantized activation. `TorchLayer` is the torch layer that computes the
/// same; `Derived::kName` is the layer's name.
template <typename Options, typename Derived, typename TorchLayer_>
class QuantizedActivationImpl : public torch::nn::Cloneable<Derived>, public QuantizedModule {
 public:
  using TorchLayer = TorchLayer_;

  explicit QuantizedActivationImpl(const Options& options_ = {});

  /// A layer with the options and training mode of `source`.
  explicit QuantizedActivationImpl(const TorchLayer& source, const Quantization& quantization = {});

  void reset() override;
  Quantization& quantization() noexcept override { return options.quantization(); }

  Options options;
};

}  // namespace actnn::nn::detail
