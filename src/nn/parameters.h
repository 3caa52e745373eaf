#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "actnn/ops/quantization.h"
#include "src/ops/checks.h"

/// \file
/// What the layers do with their parameters, buffers and quantization.

namespace actnn::nn {

/// An error unless bits and group size are valid; `layer` names the layer in its message.
void check_quantization(const std::string& layer, const Quantization& quantization);

/// Torch's initialization of convolutions and linear layers, with the same draws from the generator.
void initialize_parameters(const at::Tensor& weight, const at::Tensor& bias);

/// Registers with `target` the tensors that `source` has registered under `names` (or undefined ones), in this order.
void adopt_parameters(torch::nn::Module& target, const torch::nn::Module& source,
                      std::initializer_list<const char*> names);
void adopt_buffers(torch::nn::Module& target, const torch::nn::Module& source,
                   std::initializer_list<const char*> names);

inline std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace actnn::nn
