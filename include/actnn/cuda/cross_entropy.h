#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/scalar_types.h"

/// \file
/// The cross entropy of rows of logits, and its gradient in their place, on a GPU. Each row is read from memory once,
/// then from the cache, and written once.

namespace actnn::cuda {

struct CrossEntropyRows {
  int64_t rows;
  int64_t classes;
  int64_t pitch;  ///< elements from a row to the next; gradients of those behind the classes are 0
  void* logits;   ///< [rows, pitch], row-major; out: their gradient, of the sum of rows, if `writes_gradient`
  ElementType type;
  const int64_t* target;  ///< [rows]; not in 0..classes - 1 and not `ignore_index`: the kernel traps
  int64_t ignore_index;   ///< such a row has no loss and no gradient
  float label_smoothing;
  float z_loss;  ///< the weight of the squared logarithm of the sum of exponentials
  bool writes_gradient;
  float* loss;           ///< out: [rows]
  void* kept = nullptr;  ///< out: [rows, classes], row-major, the logits as they were; may be null
};

cudaError_t cross_entropy_rows(const CrossEntropyRows& arguments, cudaStream_t stream);

}  // namespace actnn::cuda
