#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/scalar_types.h"

/// \file
/// Sums over each sample that decide how many bits it gets (Chen et al., "ActNN", ICML 2021, section 4), on a GPU.
/// Fixed order of addition, so that equal inputs give equal bits; the last bits may differ from the CPU's.

namespace actnn::cuda {

/// Samples of `count` elements, one after the other.
struct Samples {
  const void* elements;
  ElementType type;
  int64_t samples;
  int64_t count;
};

/// Elements of scratch memory that `group_range_squares` needs, and `square_norms` for a group size of 1024.
int64_t statistics_scratch(const Samples& samples, int64_t group_size);

/// Per sample the sum over groups of (largest - smallest)^2, into `sums` (float). NaN if an element is NaN.
cudaError_t group_range_squares(const Samples& samples, int64_t group_size, double* scratch, float* sums,
                                cudaStream_t stream);

/// Per sample the sum of squares, into `sums` (float).
cudaError_t square_norms(const Samples& samples, double* scratch, float* sums, cudaStream_t stream);

}  // namespace actnn::cuda
