#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/any.h>

#include <memory>
#include <string>

#include "actnn/ops/quantization.h"

/// \file
/// Which torch layers have a compressed form.

namespace actnn::nn {

/// A torch layer's compressed form.
struct LayerConversion {
  /// Builds the layer of actnn::nn over the tensors of `source`, which is of the torch type.
  torch::nn::AnyModule (*build)(const torch::nn::Module& source, const Quantization& quantization);

  /// Whether a module is of the torch type or derives from it.
  bool (*derives)(const torch::nn::Module& module);

  std::string torch_type;  ///< "torch::nn::Conv2d"
  std::string type;        ///< "actnn::nn::Conv2d"
};

/// The conversion of the module's exact type, or none.
const LayerConversion* find_conversion(const torch::nn::Module& module);

/// The conversion of a torch layer that the module's type derives from, or none.
const LayerConversion* find_base_conversion(const torch::nn::Module& module);

/// Whether a module is a layer of actnn::nn.
bool is_compressed(const torch::nn::Module& module);

/// The type's name as users write it: "torch::nn::Conv2d" for a `torch::nn::Conv2dImpl`.
std::string type_name(const torch::nn::Module& module);

}  // namespace actnn::nn
