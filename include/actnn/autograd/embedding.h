#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace actnn {

/// `at::embedding`: rows of `weight` [num_embeddings, embedding_dim], float32, float16 or bfloat16, at `indices`, int32
/// or int64 of any shape. Saves the indices in the smallest integer type that holds num_embeddings (1 byte for up to
/// 256, 2 for up to 32768, 4). Result and gradient are torch's.
///
/// `padding_idx`: a row that gets no gradient, or -1; `scale_grad_by_freq`: divides a row's gradient by how often it
/// occurs; `sparse`: the gradient is a sparse tensor.
at::Tensor embedding(const at::Tensor& weight, const at::Tensor& indices, int64_t padding_idx = -1,
                     bool scale_grad_by_freq = false, bool sparse = false);

}  // namespace actnn
