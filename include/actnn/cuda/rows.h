#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/activation.h"
#include "actnn/core/scalar_types.h"
#include "actnn/cuda/random.h"

/// \file
/// Passes over matrices of rows x channels, row-major, on a GPU: what transformers do between their products. Each
/// reads and writes its matrices once and computes in float32. Matrices may have different types; a null pointer stands
/// for one that there is not. Sums over rows are made in a fixed order. They launch on `stream`, wait for nothing and
/// return the launch's error. A row may have up to `kMostRowChannels` channels; for sums, any number.

namespace actnn::cuda {

inline constexpr int64_t kMostRowChannels = 16384;

struct RowSource {
  const void* elements = nullptr;
  ElementType type = ElementType::kFloat32;
};

struct RowTarget {
  void* elements = nullptr;
  ElementType type = ElementType::kFloat32;
};

/// output = residual + dropout(x), with x rounded to its type between. Dropout counts elements as core/dropout.h does.
struct AddRows {
  int64_t rows;
  int64_t channels;
  RowSource x;
  RowSource residual;
  double dropout = 0.0;           ///< of elements of x, below 1; channels are a multiple of 4 then
  RandomSource random = {};       ///< of dropout
  int64_t* used_state = nullptr;  ///< out: the {seed, offset} that were drawn from; may be null
  RowTarget output;
};

cudaError_t add_rows(const AddRows& arguments, cudaStream_t stream);

/// Its backward for x: output = dropout(grad), and its sums over rows, as it is rounded.
struct DropRows {
  int64_t rows;
  int64_t channels;
  RowSource grad;
  double dropout = 0.0;
  RandomSource random = {};
  RowTarget output;
  float* sums = nullptr;       ///< [channels]; may be null
  float* workspace = nullptr;  ///< for them: `column_sums_workspace(rows, channels, 1)` floats
};

cudaError_t drop_rows(const DropRows& arguments, cudaStream_t stream);

/// sum = residual + dropout(x); normalized = (sum - mean) / deviation of each row, or sum / root mean square; output =
/// normalized weight + bias.
struct NormalizeRows {
  int64_t rows;
  int64_t channels;
  bool is_centered;  ///< layer norm; else root mean square
  double eps;
  RowSource x;
  RowSource residual = {};
  double dropout = 0.0;           ///< of elements of x, below 1; channels are a multiple of 4 then
  RandomSource random = {};       ///< of dropout, whose elements are counted as core/dropout.h does
  int64_t* used_state = nullptr;  ///< out: the {seed, offset} that were drawn from; may be null
  RowSource weight = {};          ///< [channels]
  RowSource bias = {};            ///< [channels]
  RowTarget sum = {};             ///< statistics are those of sums of this type, stored or not
  RowTarget normalized = {};
  RowTarget output = {};
  RowTarget second_output = {};  ///< the same in another type
  float* rstd = nullptr;         ///< [rows]: 1 / deviation, or 1 / root mean square
};

cudaError_t normalize_rows(const NormalizeRows& arguments, cudaStream_t stream);

/// With g = (grad + second_grad) weight: grad_input = rstd (g - mean(g) - normalized mean(g normalized)) +
/// residual_grad, without mean(g) where the norm is not centered; grad_weight = sum over rows of (grad + second_grad)
/// normalized, grad_bias that of grad + second_grad. Where rows are sums, those of `AddRows`, grad_branch is the
/// gradient of its x as `DropRows` has it.
struct NormalizeRowsBackward {
  int64_t rows;
  int64_t channels;
  bool is_centered;
  RowSource grad;
  RowSource second_grad = {};
  RowSource normalized;
  RowSource weight = {};
  const float* rstd = nullptr;
  RowSource residual_grad = {};
  RowTarget grad_input = {};  ///< may be the memory of a matrix that is read
  bool has_branch = false;
  double dropout = 0.0;  ///< of elements of the branch, below 1; channels are a multiple of 4 then
  RandomSource random = {};
  RowTarget grad_branch = {};    ///< has a type in any case; no elements where it is grad_input
  float* branch_sums = nullptr;  ///< [channels]: sums over rows of grad_branch, as it is rounded
  float* grad_weight = nullptr;
  float* grad_bias = nullptr;
  float* workspace = nullptr;  ///< for sums: `column_sums_workspace(rows, channels, 2)` floats, with a branch of 3
};

cudaError_t normalize_rows_backward(const NormalizeRowsBackward& arguments, cudaStream_t stream);

/// GELU, its approximation by tanh, or SiLU, and their derivatives at x: grad_x = derivative grad. With a gate:
/// grad_x = derivative gate grad, grad_gate = activation grad.
struct ActivateRowsBackward {
  int64_t rows;
  int64_t channels;
  ActivationKind kind;
  RowSource x;
  RowSource gate = {};
  RowSource grad;
  RowTarget grad_x = {};  ///< targets may be the memory of sources of the same type
  RowTarget grad_gate = {};
  float* grad_bias = nullptr;  ///< of x: sum over rows of grad_x, as it is rounded
  float* workspace = nullptr;  ///< for it: `column_sums_workspace(rows, channels, 1)` floats
};

cudaError_t activate_rows_backward(const ActivateRowsBackward& arguments, cudaStream_t stream);

/// output = activation(x) gate.
struct GateRows {
  int64_t rows;
  int64_t channels;
  ActivationKind kind;
  RowSource x;
  RowSource gate;
  RowTarget output;
};

cudaError_t gate_rows(const GateRows& arguments, cudaStream_t stream);

inline constexpr int kMostSummed = 4;

/// sums[m][c] = sum over rows of matrices[m][r, c], for m below `count`.
struct SumRows {
  int64_t rows;
  int64_t channels;
  int count;
  RowSource matrices[kMostSummed];
  float* sums[kMostSummed];  ///< [channels] each
  float* workspace;          ///< `column_sums_workspace(rows, channels, count)` floats
};

cudaError_t sum_rows(const SumRows& arguments, cudaStream_t stream);

/// Floats that a pass needs for so many sums over rows of each channel.
int64_t column_sums_workspace(int64_t rows, int64_t channels, int sums);

}  // namespace actnn::cuda
