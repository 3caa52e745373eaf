#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/activation.h"
#include "actnn/core/columns.h"
#include "actnn/core/scalar_types.h"
#include "actnn/cuda/columns.h"

/// \file
/// Smooth activations on a GPU whose inputs are kept as packed copies: forward in the pass that packs them, backward in
/// the one that unpacks them.

namespace actnn::cuda {

/// The packing of x in the pass that computes output = activation(x), or activation(x) gate: two 16-bit types, rows and
/// pointers at multiples of 16 bytes.
struct ActivateAndPackColumns {
  QuantizeColumns x;
  ActivationKind kind;
  const void* gate = nullptr;  ///< null: there is none
  void* output;
};

cudaError_t activate_and_pack_columns(const ActivateAndPackColumns& arguments, cudaStream_t stream);

/// As `ActivateRowsBackward` (rows.h), of a packed x, which is computed with as it is unpacked, in float32, and with
/// the activation itself as another result. Matrices are [rows, channels] of one type, row-major, at multiples of 16
/// bytes; there are rows, and channels are a multiple of 4.
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
