#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <utility>

#include "actnn/cuda/cross_entropy.h"
#include "actnn/cuda/rows.h"
#include "src/ops/checks.h"
#include "src/ops/cuda_support.h"
#include "src/ops/row_kernels.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

constexpr const char* kName = "actnn::rows";

cuda::RowSource source_of(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), check_element_type(kName, tensor.scalar_type())};
}
cuda::RowSource source_of(const std::optional<at::Tensor>& tensor) {
  return tensor && tensor->defined() ? source_of(*tensor) : cuda::RowSource{};
}
cuda::RowTarget target_of(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr(), check_element_type(kName, tensor.scalar_type())};
}

std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor && tensor->defined() ? std::optional(tensor->contiguous()) : std::nullopt;
}

/// A matrix's rows of so many channels.
int64_t rows_of(const at::Tensor& tensor, int64_t channels) { return tensor.numel() / channels; }

int64_t channels_of(const RowNorm& norm, const at::Tensor& tensor) {
  return element_count(tensor.sizes().slice(tensor.dim() - norm.dimensions));
}

std::vector<int64_t> row_sizes(const RowNorm& norm, const at::Tensor& tensor) {
  return tensor.sizes().slice(tensor.dim() - norm.dimensions).vec();
}

at::Tensor floats(const at::Tensor& like, at::IntArrayRef size) {
  return at::empty(size, like.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
}

at::Tensor dense_like(const at::Tensor& tensor, at::ScalarType dtype) {
  return at::empty(tensor.sizes(), tensor.options().dtype(dtype).memory_format(at::MemoryFormat::Contiguous));
}

/// Whether its memory may be overwritten.
bool is_free(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && tensor.storage().use_count() == 1 && tensor.is_contiguous();
}

}  // namespace

bool has_row_kernels(const at::Tensor& tensor, const c10::SymInt& channels) {
  if (!tensor.is_cuda() || is_traced(tensor)) {
    return false;
  }
  return channels > 0 && channels <= cuda::kMostRowChannels && tensor.sym_numel() > 0;
}

NormalizedRows normalize_rows_cuda(const RowNorm& norm, const at::Tensor& input, at::ScalarType dtype,
                                   bool keeps_normalized, bool keeps_rstd) {
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor x = input.contiguous();
  const int64_t channels = channels_of(norm, x);
  const auto weight = contiguous(norm.weight);
  const auto bias = contiguous(norm.bias);
  NormalizedRows result{.output = dense_like(x, dtype), .normalized = {}, .rstd = {}};
  const bool is_affine = weight || bias;
  if (keeps_normalized) {
    result.normalized = is_affine ? dense_like(x, dtype) : result.output;
  }
  if (keeps_rstd) {
    std::vector<int64_t> size = x.sizes().vec();
    std::fill(size.end() - norm.dimensions, size.end(), 1);
    result.rstd = floats(x, size);
  }
  check_launch(cuda::normalize_rows(
      {.rows = rows_of(x, channels),
       .channels = channels,
       .is_centered = norm.is_centered,
       .eps = norm.eps,
       .x = source_of(x),
       .weight = source_of(weight),
       .bias = source_of(bias),
       .normalized = keeps_normalized && is_affine ? target_of(result.normalized) : cuda::RowTarget{},
       .output = target_of(result.output),
       .rstd = keeps_rstd ? result.rstd.mutable_data_ptr<float>() : nullptr},
      current_stream()));
  return result;
}

RowNormGradients normalize_rows_backward_cuda(const RowNorm& norm, const RowNormSaved& saved,
                                              std::array<bool, 3> wanted) {
  const c10::cuda::CUDAGuard guard(saved.grad.device());
  const at::Tensor grad = saved.grad.contiguous();
  const auto second = contiguous(saved.second_grad);
  const auto residual = contiguous(saved.residual_grad);
  const auto weight = contiguous(norm.weight);
  const int64_t channels = channels_of(norm, grad);
  const int64_t rows = rows_of(grad, channels);
  const std::vector<int64_t> row = row_sizes(norm, grad);
  RowNormGradients result;
  const bool has_sums = wanted[1] || wanted[2];
  const at::Tensor workspace =
      has_sums ? floats(grad, {cuda::column_sums_workspace(rows, channels, 2)}) : at::Tensor();
  result.weight = wanted[1] ? floats(grad, row) : at::Tensor();
  result.bias = wanted[2] ? floats(grad, row) : at::Tensor();
  const at::Tensor normalized = saved.normalized.defined() ? saved.normalized.contiguous() : grad;
  if (wanted[0]) {
    result.input = dense_like(grad, saved.dtype);
  }
  check_launch(cuda::normalize_rows_backward(
      {.rows = rows,
       .channels = channels,
       .is_centered = norm.is_centered,
       .grad = source_of(grad),
       .second_grad = source_of(second),
       .normalized = source_of(normalized),
       .weight = source_of(weight),
       .rstd = wanted[0] ? saved.rstd.const_data_ptr<float>() : nullptr,
       .residual_grad = source_of(residual),
       .grad_input = wanted[0] ? target_of(result.input) : cuda::RowTarget{},
       .grad_weight = wanted[1] ? result.weight.mutable_data_ptr<float>() : nullptr,
       .grad_bias = wanted[2] ? result.bias.mutable_data_ptr<float>() : nullptr,
       .workspace = has_sums ? workspace.mutable_data_ptr<float>() : nullptr},
      current_stream()));
  return result;
}

at::Tensor activate_rows_backward_cuda(ActivationKind kind, const at::Tensor& x, at::Tensor grad) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = x.contiguous();
  const bool holds_result = is_free(grad);
  const at::Tensor gradient = grad.contiguous();
  const at::Tensor result = holds_result ? gradient : dense_like(gradient, gradient.scalar_type());
  const int64_t channels = input.size(-1);
  check_launch(cuda::activate_rows_backward({.rows = rows_of(input, channels),
                                             .channels = channels,
                                             .kind = kind,
                                             .x = source_of(input),
                                             .grad = source_of(gradient),
                                             .grad_x = target_of(result)},
                                            current_stream()));
  return result;
}

at::Tensor gate_rows_cuda(ActivationKind kind, const at::Tensor& x, const at::Tensor& gate) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = x.contiguous();
  const at::Tensor factor = gate.contiguous();
  at::Tensor result = at::empty_like(input);
  const int64_t channels = input.size(-1);
  check_launch(cuda::gate_rows({.rows = rows_of(input, channels),
                                .channels = channels,
                                .kind = kind,
                                .x = source_of(input),
                                .gate = source_of(factor),
                                .output = target_of(result)},
                               current_stream()));
  return result;
}

GatedGradients gate_rows_backward_cuda(ActivationKind kind, at::Tensor x, at::Tensor gate, const at::Tensor& grad) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = x.contiguous();
  const at::Tensor factor = gate.contiguous();
  const at::Tensor gradient = grad.contiguous();
  GatedGradients result{dense_like(input, gradient.scalar_type()), dense_like(input, gradient.scalar_type())};
  const int64_t channels = input.size(-1);
  check_launch(cuda::activate_rows_backward({.rows = rows_of(input, channels),
                                             .channels = channels,
                                             .kind = kind,
                                             .x = source_of(input),
                                             .gate = source_of(factor),
                                             .grad = source_of(gradient),
                                             .grad_x = target_of(result.x),
                                             .grad_gate = target_of(result.gate)},
                                            current_stream()));
  return result;
}

at::Tensor sum_rows_cuda(const at::Tensor& matrix) {
  const c10::cuda::CUDAGuard guard(matrix.device());
  const at::Tensor source = matrix.contiguous();
  const int64_t channels = source.size(-1);
  const int64_t rows = rows_of(source, channels);
  at::Tensor sums = floats(source, {channels});
  const at::Tensor workspace = floats(source, {cuda::column_sums_workspace(rows, channels, 1)});
  check_launch(cuda::sum_rows({.rows = rows,
                               .channels = channels,
                               .matrix = source_of(source),
                               .sums = sums.mutable_data_ptr<float>(),
                               .workspace = workspace.mutable_data_ptr<float>()},
                              current_stream()));
  return sums;
}

at::Tensor cross_entropy_rows_cuda(at::Tensor& logits, int64_t classes, const at::Tensor& target,
                                   const CrossEntropy& how, bool writes_gradient) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor labels = target.contiguous();
  at::Tensor loss = floats(logits, {logits.size(0)});
  check_launch(cuda::cross_entropy_rows({.rows = logits.size(0),
                                         .classes = classes,
                                         .pitch = logits.size(1),
                                         .logits = logits.mutable_data_ptr(),
                                         .type = check_element_type(kName, logits.scalar_type()),
                                         .target = labels.const_data_ptr<int64_t>(),
                                         .ignore_index = how.ignore_index,
                                         .label_smoothing = static_cast<float>(how.label_smoothing),
                                         .z_loss = static_cast<float>(how.z_loss),
                                         .writes_gradient = writes_gradient,
                                         .loss = loss.mutable_data_ptr<float>()},
                                        current_stream()));
  return loss;
}

}  // namespace actnn
