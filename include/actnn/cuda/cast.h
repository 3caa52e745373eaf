#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "actnn/core/scalar_types.h"

/// \file
/// Casts of many arrays at once on a GPU. A model has many parameters, of which most are too small to fill it.

namespace actnn::cuda {

/// Pointers are device memory; elements may begin anywhere, and the kernel is fast where they begin at multiples of 16
/// bytes. Arrays do not overlap.
struct Cast {
  const void* from;
  void* to;
  int64_t count;
};

/// to[i] = from[i] for each of the arrays, rounded to nearest, ties to even; a NaN stays one, of any bits. Launches on
/// `stream`, waits for nothing and returns the first error of a launch.
cudaError_t cast_arrays(std::span<const Cast> casts, ElementType from, ElementType to, cudaStream_t stream);

}  // namespace actnn::cuda
