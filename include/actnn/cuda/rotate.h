#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/cuda/rows.h"

/// \file
/// Rotary embedding on a GPU: x cos + (-second half of x, first half) sin over the last dimension, or the transposed
/// map, computed in float32 and rounded once.

namespace actnn::cuda {

/// x and the output are [batch, heads, length, size], of which the last dimension is contiguous; all have the type of x
/// but cosines and sines, which are those of a position.
struct RotateHeads {
  int64_t batch;
  int64_t heads;
  int64_t length;
  int64_t size;          ///< even
  int64_t strides[3];    ///< of x: batch, heads, length
  int64_t of_output[3];  ///< strides of the output
  int64_t of_angles[2];  ///< strides of cosines and sines: batch, length
  RowSource x;
  RowSource cosines;
  RowSource sines;
  bool back;  ///< the transposed map
  RowTarget output;
};

cudaError_t rotate_heads(const RotateHeads& arguments, cudaStream_t stream);

}  // namespace actnn::cuda
