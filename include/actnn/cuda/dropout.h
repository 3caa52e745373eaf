#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/scalar_types.h"
#include "actnn/cuda/random.h"

/// \file
/// Dropout with a counter-based mask on a GPU: the values of actnn::cpu.

namespace actnn::cuda {

/// Pointers are device memory; elements may begin anywhere, and the kernel is fast where they begin at a multiple of 16
/// bytes.
struct DropoutArguments {
  const void* input;
  ElementType type;
  int64_t count;
  double probability;  ///< of an element to be dropped, in [0, 1]
  RandomSource random;
  void* output;         ///< may be `input`
  int64_t* used_state;  ///< out: the {seed, offset} that were drawn from; may be null
};

/// output = kept ? input / (1 - probability) : 0 (core/dropout.h), rounded to nearest; a NaN becomes the canonical one.
/// Launches on `stream`, waits for nothing and returns the launch's error.
cudaError_t dropout(const DropoutArguments& arguments, cudaStream_t stream);

}  // namespace actnn::cuda
