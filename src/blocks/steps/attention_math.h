#pragma once

#include "src/blocks/steps/attention_kernels.h"

/// \file
/// Attention by matrix products and a softmax, for what no kernel takes: dropout on the CPU, ranks other than 4,
/// broadcasting.

namespace actnn::blocks {

AttentionResult math_attention_forward(const AttentionArguments& arguments, bool trains);

/// `seed` and `offset` of the random state count, not the kernel.
AttentionGradients math_attention_backward(const AttentionArguments& arguments, const AttentionResult& result,
                                           const at::Tensor& grad, const AttentionWants& wanted);

}  // namespace actnn::blocks
