#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "actnn/ops/quantization.h"

/// \file
/// Elementwise activation functions for float32, float16 and bfloat16 tensors of any shape. Results are torch's, bit
/// for bit. ReLU is in `actnn/autograd/relu.h`.

namespace actnn {

/// GELU and SiLU save a quantized copy of their *input*, of kSmoothBits at least. The gradient of the input,
/// grad_output * f'(copy), is unbiased up to half the copy's variance times the third derivative of f. Ops behind them
/// that save their input (`linear`, `convolution`, ...) save this copy, and compute f of it in backward. Groups are
/// columns of channels (actnn/ops/columns.h) of 2-D, 3-D and channels_last inputs, with a group size of theirs; else
/// runs in storage order.
///
/// The other smooth activations save a quantized copy of their *derivative* f'(x), computed from the exact input, so
/// that the gradient of the input is unbiased.
///
/// Double backward raises an error. The in-place forms save before they overwrite `input`.
///
/// `approximate`: "none" or "tanh".
at::Tensor gelu(const at::Tensor& input, std::string_view approximate = "none", const Quantization& quantization = {},
                const std::optional<at::Tensor>& rng_state = std::nullopt);
at::Tensor silu(const at::Tensor& input, const Quantization& quantization = {},
                const std::optional<at::Tensor>& rng_state = std::nullopt);
at::Tensor& silu_(at::Tensor& input, const Quantization& quantization = {},
                  const std::optional<at::Tensor>& rng_state = std::nullopt);
at::Tensor hardswish(const at::Tensor& input, const Quantization& quantization = {},
                     const std::optional<at::Tensor>& rng_state = std::nullopt);
at::Tensor& hardswish_(at::Tensor& input, const Quantization& quantization = {},
                       const std::optional<at::Tensor>& rng_state = std::nullopt);
at::Tensor sigmoid(const at::Tensor& input, const Quantization& quantization = {},
                   const std::optional<at::Tensor>& rng_state = std::nullopt);
at::Tensor tanh(const at::Tensor& input, const Quantization& quantization = {},
                const std::optional<at::Tensor>& rng_state = std::nullopt);

/// Piecewise linear activations save one bit per element; gradients, also second ones, are exact.
at::Tensor leaky_relu(const at::Tensor& input, double negative_slope = 0.01);
at::Tensor& leaky_relu_(at::Tensor& input, double negative_slope = 0.01);

/// `min_val` <= `max_val`. ReLU6 is hardtanh with 0 and 6.
at::Tensor hardtanh(const at::Tensor& input, double min_val = -1, double max_val = 1);
at::Tensor& hardtanh_(at::Tensor& input, double min_val = -1, double max_val = 1);

/// `at::prelu`. `weight`: [1] or [C], C the second dimension of `input`, in the input's dtype. Saves one bit per
/// element for the gradient of the input, which is exact, and, only if the weight wants a gradient, a quantized copy of
/// min(x, 0), of which that gradient is computed, unbiased. Double backward raises an error. Autocast casts as torch
/// does, to the lower precision.
at::Tensor prelu(const at::Tensor& input, const at::Tensor& weight, const Quantization& quantization = {},
                 const std::optional<at::Tensor>& rng_state = std::nullopt);

}  // namespace actnn
