#pragma once

#include "actnn/nn/quantized_activation.h"
#include "src/nn/parameters.h"

/// \file
/// Definitions of `QuantizedActivationImpl`, for the sources that instantiate it.

namespace actnn::nn::detail {

/// The options of a torch layer; some layers have none.
template <typename Options, typename TorchLayer>
Options options_of(const TorchLayer& layer) {
  if constexpr (requires { layer.options; }) {
    return Options(layer.options);
  } else {
    return Options();
  }
}

template <typename Options, typename Derived, typename TorchLayer_>
QuantizedActivationImpl<Options, Derived, TorchLayer_>::QuantizedActivationImpl(const Options& options_)
    : options(options_) {
  QuantizedActivationImpl::reset();
}

template <typename Options, typename Derived, typename TorchLayer_>
QuantizedActivationImpl<Options, Derived, TorchLayer_>::QuantizedActivationImpl(const TorchLayer& source,
                                                                                const Quantization& quantization)
    : options(options_of<Options>(source)) {
  options.quantization(quantization);
  QuantizedActivationImpl::reset();
  this->train(source.is_training());
}

template <typename Options, typename Derived, typename TorchLayer_>
void QuantizedActivationImpl<Options, Derived, TorchLayer_>::reset() {
  check_quantization(Derived::kName, options.quantization());
}

}  // namespace actnn::nn::detail
