#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/activation.h"
#include "actnn/core/columns.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The backward of smooth activations from packed copies of their inputs, on a GPU, in the pass that unpacks them.

namespace actnn::cuda {

/// As `ActivateRowsBackward` (rows.h), of a packed x, which is computed with as it is unpacked, in float32. Matrices
/// are [rows, channels] of one type, row-major, at multiples of 16 bytes; channels are a multiple of 4.
struct ActivateColumnsBackward {
  const uint8_t* packed;         ///< x, in column groups (core/columns.h)
  ColumnLayout<int64_t> layout;  ///< without masks
  ActivationKind kind;
  ElementType type;
  const void* grad;
  const void* gate = nullptr;  ///< null: there is none
  void* output = nullptr;      ///< activation(x), times the gate; may be null
  void* grad_x;                ///< may be the memory of a matrix that is read
  void* grad_gate = nullptr;   ///< likewise; may be null
  float* grad_bias = nullptr;  ///< [channels]: sum over rows of grad_x, as it is rounded, in a fixed order; may be null
  float* workspace = nullptr;  ///< for it: `column_activation_workspace(layout)` floats
};

cudaError_t activate_columns_backward(const ActivateColumnsBackward& arguments, cudaStream_t stream);

int64_t column_activation_workspace(const ColumnLayout<int64_t>& layout);

}  // namespace actnn::cuda
