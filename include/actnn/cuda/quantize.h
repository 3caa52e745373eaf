#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/layout.h"
#include "actnn/core/rounding.h"
#include "actnn/core/scalar_types.h"
#include "actnn/cuda/random.h"

/// \file
/// Quantization and dequantization of packed activations (core/layout.h) on a GPU: the bytes and values of actnn::cpu.
///
/// Pointers are device memory. Every function launches on `stream`, waits for nothing and returns the launch's error.
/// Elements may begin anywhere; packed activations begin at a multiple of 16 bytes.

namespace actnn::cuda {

/// A tensor with one bit width.
struct QuantizeArguments {
  const void* elements;  ///< `count` elements of `type`, in storage order
  ElementType type;
  int64_t count;
  int64_t group_size;  ///< a multiple of 32; powers of two from 32 to 1024 are fastest
  int bits;            ///< 1..8
  uint8_t* packed;     ///< out: packed_bytes(count, bits, group_size)
  RandomSource random;
  Rounding rounding;  ///< `kNearest`: `random` is unused, and counts as zeros
};

cudaError_t quantize(const QuantizeArguments& arguments, cudaStream_t stream);

struct DequantizeArguments {
  const uint8_t* packed;
  int64_t count;
  int64_t group_size;
  int bits;
  ElementType type;
  void* elements;  ///< out
};

cudaError_t dequantize(const DequantizeArguments& arguments, cudaStream_t stream);

/// Samples with a bit width each. The host does not know the widths, so what is wrong with them cannot be reported: a
/// sample whose width is not in 1..8, or whose codes would end beyond `room`, is written as NaN groups without codes,
/// and read as NaN.
struct SampleBits {
  const uint8_t* bits;  ///< `samples` bit widths
  int64_t samples;
  int64_t room;           ///< bytes for codes
  int64_t* code_offsets;  ///< scratch: `samples` + 1 numbers, written and read by one call
};

/// `arguments.count` elements a sample; `bits` is ignored. `packed` has codes_offset(all groups) + room bytes, of which
/// those after the last sample's codes become 0.
cudaError_t quantize_per_sample(const QuantizeArguments& arguments, const SampleBits& samples, cudaStream_t stream);
cudaError_t dequantize_per_sample(const DequantizeArguments& arguments, const SampleBits& samples, cudaStream_t stream);

}  // namespace actnn::cuda
