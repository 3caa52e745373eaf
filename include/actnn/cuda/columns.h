#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/columns.h"
#include "actnn/core/scalar_types.h"
#include "actnn/cuda/random.h"

/// \file
/// Packing of matrices in groups of columns (core/columns.h) on a GPU: the bytes and values of actnn::cpu. Pointers are
/// device memory; packed matrices begin at a multiple of 16 bytes, elements anywhere. Nothing waits for the device.

namespace actnn::cuda {

struct QuantizeColumns {
  const void* elements;  ///< [rows, channels], row-major
  ElementType type;
  ColumnLayout<int64_t> layout;  ///< without masks
  uint8_t* packed;               ///< out: layout.bytes(), header included
  RandomSource random;
  Rounding rounding;
};

cudaError_t quantize_columns(const QuantizeColumns& arguments, cudaStream_t stream);

struct DequantizeColumns {
  const uint8_t* packed;
  ColumnLayout<int64_t> layout;
  ElementType type;
  void* elements;                 ///< out
  const float* weight = nullptr;  ///< [channels], which elements are multiplied with, before they are rounded
  const float* bias = nullptr;    ///< [channels], which is added then
};

cudaError_t dequantize_columns(const DequantizeColumns& arguments, cudaStream_t stream);

}  // namespace actnn::cuda
