#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace actnn {

enum class LossReduction : int8_t {
  kMean,  ///< over the targets that are not ignored; NaN if all are
  kSum,
};

struct LinearCrossEntropyOptions {
  int64_t ignore_index = -100;   ///< such a target's row counts for nothing
  double label_smoothing = 0.0;  ///< in [0, 1]: that part of a target is spread over all classes
  double z_loss = 0.0;           ///< 0 or more: times the squared log-sum-exp, added to each row's loss
  LossReduction reduction = LossReduction::kMean;
};

/// `torch::nn::functional::cross_entropy(at::linear(input, weight, bias), target)`, the end of a language model,
/// without its logits: they are computed for some rows at a time, and forward computes the gradients from them at once.
///
/// `input`: [..., features]; `weight`: [classes, features], which may be an embedding's, too; `bias`: [classes] or
/// none; `target`: int64, of the input's shape without the last dimension. The result is a float32 scalar. All
/// gradients are the exact ones; that of the weight is added up in float32, for 16-bit tensors of products that are
/// rounded to theirs. Kept for backward are the gradients that are wanted: as much as the input, and of the weight, in
/// float32, or in bfloat16 where it is that. Rows at a time are so many that their logits take about as much memory as
/// the weight in float32, or 2^22 logits. On a GPU classes are padded to a multiple of 8 for the products.
///
/// The op `actnn::linear_cross_entropy_and_logits` returns the logits, too, [..., classes] in the input's dtype, which
/// may have gradients of their own; it keeps the input and the weight besides, and nothing of the logits.
///
/// z-loss: Chowdhery et al., "PaLM" (2022), section 5. Double backward raises an error. c10::ValueError for shapes and
/// options that make no sense, c10::IndexError for a target that is no class (on a GPU, a device-side assertion).
at::Tensor linear_cross_entropy(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                                const std::optional<at::Tensor>& bias = std::nullopt,
                                const LinearCrossEntropyOptions& options = {});

}  // namespace actnn
