#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <optional>

#include "actnn/cuda/random.h"

/// \file
/// What the CUDA glue of the ops shares. Each op first makes the input's device the current one
/// (`c10::cuda::CUDAGuard`).

namespace actnn {

/// The current stream of the current device.
cudaStream_t current_stream();

/// Throws torch's error for a failed launch.
void check_launch(cudaError_t error);

/// The state to draw from: the tensor's, read when the kernel runs, or, without one, the next of torch's default
/// generator of the current device (which follows torch.manual_seed and gives fresh noise at each replay of a captured
/// graph).
cuda::RandomSource random_source(const std::optional<at::Tensor>& rng_state);

/// Advances the tensor by one call, in stream order; nothing without a tensor.
void advance_random_state(const std::optional<at::Tensor>& rng_state);

/// `packed` itself if its data begins at a multiple of 16 bytes, as allocated tensors do, else a copy that does.
at::Tensor aligned_bytes(const at::Tensor& packed);

}  // namespace actnn
