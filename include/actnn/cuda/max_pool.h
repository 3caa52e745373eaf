#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/max_pool.h"
#include "actnn/core/scalar_types.h"

/// \file
/// 2-D max-pooling on a GPU that keeps the position of the maximum inside its window (core/max_pool.h). The values and
/// bytes of actnn::cpu, the same at every run.
///
/// Pointers are device memory and may begin anywhere; channels_last tensors are fastest where a pixel's channels fill
/// vectors of 16 bytes and begin at a multiple of them. Every function launches on `stream`, waits for nothing and
/// returns the launch's error.

namespace actnn::cuda {

/// `positions` holds output elements * position_bytes(...) bytes in the output's layout.
cudaError_t max_pool2d(const MaxPool2dShape& shape, ElementType type, const void* input, void* output,
                       uint8_t* positions, cudaStream_t stream);

/// Writes every element of `grad_input`: the sum of the output gradients whose windows have their maximum there, added
/// in the element type in the order of the output.
cudaError_t max_pool2d_backward(const MaxPool2dShape& shape, ElementType type, const void* grad_output,
                                const uint8_t* positions, void* grad_input, cudaStream_t stream);

/// The flat index y * input_width + x of each maximum, in the output's layout.
cudaError_t max_pool2d_indices(const MaxPool2dShape& shape, const uint8_t* positions, int64_t* indices,
                               cudaStream_t stream);

}  // namespace actnn::cuda
