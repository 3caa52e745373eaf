#pragma once

#include "actnn/ops/quantization.h"

namespace actnn::nn {

/// What every layer that saves a quantized activation is, besides a `torch::nn::Module`. It lets a program walk a tree
/// of modules and set bits without knowing the layers:
///
///     for (const auto& module : model->modules()) {
///       if (auto* layer = module->as<actnn::nn::QuantizedModule>()) layer->quantization().bits = 2;
///     }
///
/// A change acts at the next forward.
class QuantizedModule {
 public:
  QuantizedModule() = default;
  QuantizedModule(const QuantizedModule&) = default;
  QuantizedModule& operator=(const QuantizedModule&) = default;
  virtual ~QuantizedModule() = default;

  virtual Quantization& quantization() noexcept = 0;
};

}  // namespace actnn::nn
