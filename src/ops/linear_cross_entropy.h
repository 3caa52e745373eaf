#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace actnn {

/// Raises an error if they do not fit together (autograd/linear_cross_entropy.h).
void check_linear_cross_entropy(const char* op, const at::Tensor& input, const at::Tensor& weight,
                                const at::Tensor& target, const std::optional<at::Tensor>& bias, double label_smoothing,
                                double z_loss);

/// What `linear_cross_entropy_forward` computes. The gradients are those of the sum of rows; undefined if not wanted.
struct LinearCrossEntropy {
  at::Tensor loss;   ///< float32 scalar
  at::Tensor scale;  ///< of the sum of rows in the loss: float32 scalar
  at::Tensor grad_input;
  at::Tensor grad_weight;  ///< float32, or bfloat16 where the weight is
  at::Tensor grad_bias;    ///< float32
  at::Tensor logits;       ///< [rows, classes], in the input's dtype; undefined if not returned
};

/// The op `actnn::linear_cross_entropy_forward`; `wanted`: gradients of input, weight and bias. `input`: [rows,
/// features]; `target`: [rows].
LinearCrossEntropy linear_cross_entropy_forward(const at::Tensor& input, const at::Tensor& weight,
                                                const std::optional<at::Tensor>& bias, const at::Tensor& target,
                                                std::array<bool, 3> wanted, int64_t ignore_index,
                                                double label_smoothing, double z_loss, bool mean, bool returns_logits);

}  // namespace actnn
