/// Of a build without CUDA.

#include <c10/util/Exception.h>

#include "src/ops/row_kernels.h"

namespace actnn {
namespace {

[[noreturn]] void refuse() { TORCH_INTERNAL_ASSERT(false, "this build has no CUDA kernels"); }

}  // namespace

bool has_row_kernels(const at::Tensor& /*tensor*/, const c10::SymInt& /*channels*/) { return false; }

NormalizedRows normalize_rows_cuda(const RowNorm& /*norm*/, const at::Tensor& /*input*/,
                                   const NormalizedForms& /*forms*/) {
  refuse();
}
RowNormGradients normalize_rows_backward_cuda(const RowNorm& /*norm*/, const RowNormSaved& /*saved*/,
                                              std::array<bool, 3> /*wanted*/) {
  refuse();
}
SummedGradient activate_rows_backward_cuda(ActivationKind /*kind*/, const at::Tensor& /*x*/, const at::Tensor& /*grad*/,
                                           bool /*wants_sums*/) {
  refuse();
}
ActivatedRows activate_and_pack_rows_cuda(ActivationKind /*kind*/, const at::Tensor& /*x*/,
                                          const std::optional<at::Tensor>& /*gate*/,
                                          const ColumnQuantization& /*quantization*/) {
  refuse();
}
ActivationGradients activate_packed_rows_backward_cuda(ActivationKind /*kind*/, const PackedRows& /*x*/,
                                                       const std::optional<at::Tensor>& /*gate*/,
                                                       const at::Tensor& /*grad*/,
                                                       const WantedOfActivation& /*wanted*/) {
  refuse();
}
SummedRows add_rows_cuda(const at::Tensor& /*x*/, const at::Tensor& /*residual*/, double /*probability*/,
                         at::ScalarType /*dtype*/) {
  refuse();
}
SummedGradient add_rows_backward_cuda(const at::Tensor& /*grad*/, double /*probability*/, const at::Tensor& /*state*/,
                                      at::ScalarType /*dtype*/, bool /*wants_sums*/) {
  refuse();
}
at::Tensor gate_rows_cuda(ActivationKind /*kind*/, const at::Tensor& /*x*/, const at::Tensor& /*gate*/) { refuse(); }
GatedGradients gate_rows_backward_cuda(ActivationKind /*kind*/, const at::Tensor& /*x*/, const at::Tensor& /*gate*/,
                                       const at::Tensor& /*grad*/) {
  refuse();
}
bool has_rotation_kernel(const at::Tensor& /*x*/, const at::Tensor& /*cosines*/, const at::Tensor& /*sines*/) {
  return false;
}
at::Tensor rotate_cuda(const at::Tensor& /*x*/, const at::Tensor& /*cosines*/, const at::Tensor& /*sines*/,
                       bool /*back*/) {
  refuse();
}
std::vector<at::Tensor> sum_rows_cuda(const std::vector<at::Tensor>& /*matrices*/) { refuse(); }
at::Tensor cross_entropy_rows_cuda(at::Tensor& /*logits*/, int64_t /*classes*/, const at::Tensor& /*target*/,
                                   const CrossEntropy& /*how*/, bool /*writes_gradient*/, const at::Tensor& /*kept*/) {
  refuse();
}

}  // namespace actnn
