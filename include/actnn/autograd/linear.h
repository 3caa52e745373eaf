#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "actnn/autograd/retention.h"
#include "actnn/ops/quantization.h"

namespace actnn {

/// `at::linear`, saving a quantized copy of its input for backward.
///
/// `input`: [..., in_features] of any rank >= 1; `weight`: [out_features, in_features]; `bias`: [out_features] or none.
/// The result, and the gradients of input and bias, are the exact ones; the gradient of weight is unbiased. The input
/// is saved only if the weight requires a gradient. Double backward raises an error.
at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const Quantization& quantization = {}, const std::optional<at::Tensor>& rng_state = std::nullopt,
                  const Retention& retention = {});

}  // namespace actnn
