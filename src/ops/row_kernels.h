#pragma once

#include "src/ops/rows.h"

/// \file
/// The passes of rows.h on a GPU.

namespace actnn {

/// Whether there are kernels for this tensor's rows of `channels` channels, and nobody traces it.
bool has_row_kernels(const at::Tensor& tensor, const c10::SymInt& channels);

NormalizedRows normalize_rows_cuda(const RowNorm& norm, const at::Tensor& input, const NormalizedForms& forms);
RowNormGradients normalize_rows_backward_cuda(const RowNorm& norm, const RowNormSaved& saved,
                                              std::array<bool, 3> wanted);
SummedGradient activate_rows_backward_cuda(ActivationKind kind, const at::Tensor& x, const at::Tensor& grad,
                                           bool wants_sums);
ActivatedRows activate_and_pack_rows_cuda(ActivationKind kind, const at::Tensor& x,
                                          const std::optional<at::Tensor>& gate,
                                          const ColumnQuantization& quantization);
ActivationGradients activate_packed_rows_backward_cuda(ActivationKind kind, const PackedRows& x,
                                                       const std::optional<at::Tensor>& gate, const at::Tensor& grad,
                                                       const WantedOfActivation& wanted);
SummedRows add_rows_cuda(const at::Tensor& x, const at::Tensor& residual, double probability, at::ScalarType dtype);
SummedGradient add_rows_backward_cuda(const at::Tensor& grad, double probability, const at::Tensor& state,
                                      at::ScalarType dtype, bool wants_sums);
at::Tensor gate_rows_cuda(ActivationKind kind, const at::Tensor& x, const at::Tensor& gate);
GatedGradients gate_rows_backward_cuda(ActivationKind kind, const at::Tensor& x, const at::Tensor& gate,
                                       const at::Tensor& grad);
/// Of one size.
std::vector<at::Tensor> sum_rows_cuda(const std::vector<at::Tensor>& matrices);
/// Whether there is a kernel for these: [batch, heads, length, size], with the angles of a position.
bool has_rotation_kernel(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines);
at::Tensor rotate_cuda(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines, bool back);

/// How rows of logits become losses, and gradients of the sum of rows.
struct CrossEntropy {
  int64_t ignore_index;
  double label_smoothing;
  double z_loss;
};
/// The losses, float32 [rows]. `logits`, [rows, classes and up to 8 more columns] and contiguous, becomes their
/// gradient, if `writes_gradient`; that of the columns more is 0. `kept`: contiguous [rows, classes] for the logits as
/// they were, or undefined.
at::Tensor cross_entropy_rows_cuda(at::Tensor& logits, int64_t classes, const at::Tensor& target,
                                   const CrossEntropy& how, bool writes_gradient, const at::Tensor& kept);

}  // namespace actnn
