#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/scalar_types.h"

/// \file
/// 1-bit masks on a GPU: element i in bit i % 8 of byte i / 8, unused bits 0. The bytes and values of actnn::cpu.
///
/// Pointers are device memory and may begin anywhere; the kernels are fast where elements and bools begin at a multiple
/// of 16 bytes and masks at one of 4. Every function launches on `stream`, waits for nothing and returns the launch's
/// error.

namespace actnn::cuda {

/// Packs bytes that are 0 (false) or anything else (true).
cudaError_t pack_mask(const uint8_t* bools, int64_t count, uint8_t* mask, cudaStream_t stream);

/// The inverse: bytes 0 and 1.
cudaError_t unpack_mask(const uint8_t* mask, int64_t count, uint8_t* bools, cudaStream_t stream);

/// One pass of ReLU (core/mask.h): output = input < 0 ? 0 : input, mask = !(input <= 0), which is where the gradient
/// passes. `output` may be `input`.
cudaError_t relu(const void* input, ElementType type, int64_t count, void* output, uint8_t* mask, cudaStream_t stream);

/// output = mask ? input : 0. `output` may be `input`.
cudaError_t apply_mask(const void* input, ElementType type, int64_t count, const uint8_t* mask, void* output,
                       cudaStream_t stream);

}  // namespace actnn::cuda
