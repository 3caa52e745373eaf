#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/host_device.h"
#include "actnn/core/philox.h"

/// \file
/// Where CUDA kernels read their random state.

namespace actnn::cuda {

/// A random state that is known at launch, or read from device memory when the kernel runs: a captured graph then draws
/// fresh noise at every replay.
struct RandomSource {
  const int64_t* seed = nullptr;    ///< device memory, or null for 0
  const int64_t* offset = nullptr;  ///< device memory, or null for 0
  RandomState shift;                ///< combined with what the pointers give: seed by exclusive or, offset by addition

  ACTNN_HOST_DEVICE constexpr RandomState load() const {
    return {(seed == nullptr ? 0 : static_cast<uint64_t>(*seed)) ^ shift.seed,
            (offset == nullptr ? 0 : static_cast<uint64_t>(*offset)) + shift.offset};
  }
};

/// Adds 1 to the offset of a state {seed, offset} in device memory.
cudaError_t advance_random_state(int64_t* state, cudaStream_t stream);

}  // namespace actnn::cuda
