#pragma once

#include <cuda_runtime_api.h>

#include "actnn/cuda/norm_act.h"

namespace actnn::cuda {

/// `norm_act` of the activations that have derivatives (core/activation.h), of a matrix that is not empty.
cudaError_t norm_act_derived(const NormActForward& forward, cudaStream_t stream);

}  // namespace actnn::cuda
