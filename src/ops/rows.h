#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "actnn/ops/columns.h"
#include "src/ops/activation_names.h"

/// \file
/// What transformers do to rows between their products, each as one pass over memory where there is a GPU
/// (actnn/cuda/rows.h), and by torch's operations elsewhere. Tensors are float32, float16 or bfloat16; what is computed
/// is rounded once. None of these functions is differentiable.

namespace actnn {

/// A norm by the statistics of rows of the last `dimensions` dimensions.
struct RowNorm {
  bool is_centered;  ///< layer norm; else by the root mean square
  double eps;
  int64_t dimensions;
  std::optional<at::Tensor> weight;
  std::optional<at::Tensor> bias;
};

/// What rows become before they are normalized: dropout(rows) + residual, of one size, in `dtype`.
struct RowAddition {
  at::Tensor residual;
  double probability;  ///< of dropout; 0: without
  at::ScalarType dtype;
  bool keeps_sum;
};

/// The others are undefined unless they are asked for.
struct NormalizedRows {
  at::Tensor output;
  at::Tensor second_output;  ///< the same in another dtype
  at::Tensor normalized;     ///< before weight and bias
  at::Tensor rstd;           ///< 1 / deviation of each row, or 1 / root mean square; float32, [..., 1]
  at::Tensor sum;            ///< of an addition
  at::Tensor state;          ///< what the mask of its dropout was made of
};

/// What is asked for.
struct NormalizedForms {
  at::ScalarType dtype;                           ///< of the output
  std::optional<at::ScalarType> second = {};      ///< of a second output
  std::optional<at::ScalarType> normalized = {};  ///< of the normalized rows
  bool rstd = false;
  std::optional<RowAddition> addition = {};
};

/// Results are contiguous.
NormalizedRows normalize_rows(const RowNorm& norm, const at::Tensor& input, const NormalizedForms& forms);

/// A gradient, and its sum over all dimensions but the last, float32, if that was asked for.
struct SummedGradient {
  at::Tensor grad;
  at::Tensor sums;
};

/// Undefined unless wanted.
struct RowNormGradients {
  at::Tensor input;
  at::Tensor weight;  ///< float32 or the dtype of the gradient
  at::Tensor bias;
  SummedGradient branch;
};

/// What was added to a residual, by `RowAddition`, where its gradient is wanted: that of the input, dropped and
/// rounded.
struct RowBranch {
  double probability;
  at::Tensor state;  ///< what the mask of dropout was made of
  at::ScalarType dtype;
  bool wants_sums;
};

/// What a norm's backward reads.
struct RowNormSaved {
  at::Tensor grad;
  at::Tensor second_grad;  ///< added to it; may be undefined
  at::Tensor normalized;
  at::Tensor rstd;                       ///< read for the gradient of the input
  at::Tensor residual_grad;              ///< added to the gradient of the input; may be undefined
  at::ScalarType dtype;                  ///< of the gradient of the input
  std::optional<RowBranch> branch = {};  ///< only where the gradient of the input is wanted, too
};

/// `wanted`: input, weight, bias.
RowNormGradients normalize_rows_backward(const RowNorm& norm, const RowNormSaved& saved, std::array<bool, 3> wanted);

/// The gradient of x of activation(x) for GELU, its approximation by tanh, or SiLU, perhaps in the memory of `grad`.
SummedGradient activate_rows_backward(ActivationKind kind, const at::Tensor& x, const at::Tensor& grad,
                                      bool wants_sums);

/// Rows that are packed in columns (actnn/ops/columns.h), as many as the gradients that come with them.
struct PackedRows {
  at::Tensor packed;
  int64_t bits;
  int64_t group_rows;
};

/// Whether `activate_and_pack_rows` has a pass for a tensor.
bool can_activate_and_pack_rows(const at::Tensor& x);

/// activation(x), or activation(x) gate, and x as it is packed in columns.
struct ActivatedRows {
  at::Tensor output;
  at::Tensor packed;
};
ActivatedRows activate_and_pack_rows(ActivationKind kind, const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                     const ColumnQuantization& quantization);

/// The others are undefined unless they are asked for.
struct ActivationGradients {
  at::Tensor x;
  at::Tensor gate;
  at::Tensor output;  ///< activation(x), times the gate
  at::Tensor sums;    ///< of the gradient of x, over all dimensions but the last, float32
};

struct WantedOfActivation {
  bool gate = false;
  bool output = false;
  bool sums = false;
};

/// Whether `activate_packed_rows_backward` has a pass for packed rows of this many channels.
bool can_activate_packed_rows(const at::Tensor& packed, const c10::SymInt& channels);

/// The backward of activation(x), or activation(x) gate, in the pass that unpacks x; in the dtype of `grad`, perhaps in
/// its memory.
ActivationGradients activate_packed_rows_backward(ActivationKind kind, const PackedRows& x,
                                                  const std::optional<at::Tensor>& gate, const at::Tensor& grad,
                                                  const WantedOfActivation& wanted);

/// residual + dropout(x), which broadcast, in `dtype`; `probability` 0: without dropout. `state`: what its mask was
/// made of, undefined without.
struct SummedRows {
  at::Tensor output;
  at::Tensor state;
};
SummedRows add_rows(const at::Tensor& x, const at::Tensor& residual, double probability, at::ScalarType dtype);

/// The gradient of x, in `dtype`.
SummedGradient add_rows_backward(const at::Tensor& grad, double probability, const at::Tensor& state,
                                 at::ScalarType dtype, bool wants_sums);

/// activation(x) gate, of one size and dtype.
at::Tensor gate_rows(ActivationKind kind, const at::Tensor& x, const at::Tensor& gate);

/// Its backward.
struct GatedGradients {
  at::Tensor x;
  at::Tensor gate;
};
GatedGradients gate_rows_backward(ActivationKind kind, const at::Tensor& x, const at::Tensor& gate,
                                  const at::Tensor& grad);

/// x cos + (-second half of x, first half) sin, over the last dimension, in x's dtype and strides; or the transposed
/// map, which turns `back`. Cosines and sines broadcast to x.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines, bool back);

/// The sum over all dimensions but the last.
at::Tensor sum_rows(const at::Tensor& matrix);
/// Those of several of one size.
std::vector<at::Tensor> sum_rows(const std::vector<at::Tensor>& matrices);

}  // namespace actnn
