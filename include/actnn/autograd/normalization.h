#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "actnn/ops/quantization.h"

/// \file
/// Normalizations by the statistics of a sample's own elements. Results are torch's, bit for bit. Saved for backward
/// are a quantized copy of x-hat, the normalized value, whose scale is 1 whatever the input's is, and the exact
/// deviations; no copy where only the bias wants a gradient.
///
/// The gradient of bias is exact, that of weight is unbiased. The gradient of input contains a product of two copied
/// values, so that its expectation differs from the exact gradient by Var[x-hat] / n times the gradient of the
/// normalized value, n the number of elements that share their statistics. Double backward raises an error.
///
/// `input` and the parameters are float32, float16 or bfloat16, on one device; anything else is a ValueError or
/// TypeError.

namespace actnn {

/// `at::layer_norm`. `input`: [..., *normalized_shape]; `weight`, `bias`: normalized_shape or none. Statistics are
/// those of the last `normalized_shape.size()` dimensions. Autocast on CUDA computes in float32, as torch does.
at::Tensor layer_norm(const at::Tensor& input, c10::IntArrayRef normalized_shape,
                      const std::optional<at::Tensor>& weight = std::nullopt,
                      const std::optional<at::Tensor>& bias = std::nullopt, double eps = 1e-5,
                      const Quantization& quantization = {}, const std::optional<at::Tensor>& rng_state = std::nullopt);

/// `at::rms_norm`, as `layer_norm` without mean and bias. `eps` none: the machine epsilon of float32.
at::Tensor rms_norm(const at::Tensor& input, c10::IntArrayRef normalized_shape,
                    const std::optional<at::Tensor>& weight = std::nullopt, std::optional<double> eps = std::nullopt,
                    const Quantization& quantization = {}, const std::optional<at::Tensor>& rng_state = std::nullopt);

/// `at::group_norm`. `input`: [N, C, ...], C a multiple of `num_groups`; `weight`, `bias`: [C] or none. Statistics are
/// those of C / num_groups channels of a sample. channels_last is kept on the CPU; autocast on CUDA computes in
/// float32, as torch does.
at::Tensor group_norm(const at::Tensor& input, int64_t num_groups,
                      const std::optional<at::Tensor>& weight = std::nullopt,
                      const std::optional<at::Tensor>& bias = std::nullopt, double eps = 1e-5,
                      const Quantization& quantization = {}, const std::optional<at::Tensor>& rng_state = std::nullopt);

/// `at::instance_norm`: `actnn::batch_norm` of a view [1, N * C, ...]. `input`: [N, C, ...] of rank >= 3, the rest as
/// in `batch_norm`; with `use_input_stats` false the running statistics normalize, and the gradient of input is exact.
at::Tensor instance_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                         const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                         const std::optional<at::Tensor>& running_var, bool use_input_stats, double momentum,
                         double eps, const Quantization& quantization = {},
                         const std::optional<at::Tensor>& rng_state = std::nullopt);

}  // namespace actnn
