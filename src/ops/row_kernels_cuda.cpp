#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <utility>

#include "actnn/cuda/column_activation.h"
#include "actnn/cuda/cross_entropy.h"
#include "actnn/cuda/rotate.h"
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

/// {seed, offset} of dropout.
at::Tensor empty_state(const at::Tensor& like) {
  return at::empty({2}, like.options().dtype(at::kLong).memory_format(at::MemoryFormat::Contiguous));
}
int64_t* state_of(const at::Tensor& state) { return state.defined() ? state.mutable_data_ptr<int64_t>() : nullptr; }

/// Sums over rows, and what a pass needs for them; nothing unless wanted.
struct Sums {
  at::Tensor sums;
  at::Tensor workspace;

  Sums(const at::Tensor& like, int64_t rows, int64_t channels, bool wanted) {
    if (wanted) {
      sums = floats(like, {channels});
      workspace = floats(like, {cuda::column_sums_workspace(rows, channels, 1)});
    }
  }
  float* data() const { return sums.defined() ? sums.mutable_data_ptr<float>() : nullptr; }
  float* workspace_data() const { return workspace.defined() ? workspace.mutable_data_ptr<float>() : nullptr; }
};

/// Whether its memory may be overwritten.
bool is_free(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && tensor.storage().use_count() == 1 && tensor.is_contiguous();
}

/// Contiguous, at a multiple of 16 bytes.
at::Tensor at_vectors(const at::Tensor& tensor) {
  constexpr uintptr_t kVector = 16;
  const at::Tensor dense = tensor.contiguous();
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % kVector == 0 ? dense : dense.clone();
}

}  // namespace

bool has_row_kernels(const at::Tensor& tensor, const c10::SymInt& channels) {
  if (!tensor.is_cuda() || is_traced(tensor)) {
    return false;
  }
  return channels > 0 && channels <= cuda::kMostRowChannels && tensor.sym_numel() > 0;
}

NormalizedRows normalize_rows_cuda(const RowNorm& norm, const at::Tensor& input, const NormalizedForms& forms) {
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor x = input.contiguous();
  const int64_t channels = channels_of(norm, x);
  const auto weight = contiguous(norm.weight);
  const auto bias = contiguous(norm.bias);
  NormalizedRows result{
      .output = dense_like(x, forms.dtype), .second_output = {}, .normalized = {}, .rstd = {}, .sum = {}, .state = {}};
  if (forms.second) {
    result.second_output = dense_like(x, *forms.second);
  }
  const bool is_output = !weight && !bias && forms.normalized == forms.dtype;
  if (forms.normalized) {
    result.normalized = is_output ? result.output : dense_like(x, *forms.normalized);
  }
  if (forms.rstd) {
    std::vector<int64_t> size = x.sizes().vec();
    std::fill(size.end() - norm.dimensions, size.end(), 1);
    result.rstd = floats(x, size);
  }
  const auto target = [](const at::Tensor& tensor) { return tensor.defined() ? target_of(tensor) : cuda::RowTarget{}; };
  std::optional<at::Tensor> residual;
  cuda::RowTarget sum;
  double dropout = 0.0;
  if (forms.addition) {
    residual = forms.addition->residual.contiguous();
    dropout = forms.addition->probability;
    result.sum = forms.addition->keeps_sum ? dense_like(x, forms.addition->dtype) : at::Tensor();
    result.state = dropout > 0.0 ? empty_state(x) : at::Tensor();
    sum = target(result.sum);
    sum.type = check_element_type(kName, forms.addition->dtype);
  }
  check_launch(cuda::normalize_rows({.rows = rows_of(x, channels),
                                     .channels = channels,
                                     .is_centered = norm.is_centered,
                                     .eps = norm.eps,
                                     .x = source_of(x),
                                     .residual = source_of(residual),
                                     .dropout = dropout,
                                     .random = dropout > 0.0 ? random_source(std::nullopt) : cuda::RandomSource{},
                                     .used_state = state_of(result.state),
                                     .weight = source_of(weight),
                                     .bias = source_of(bias),
                                     .sum = sum,
                                     .normalized = is_output ? cuda::RowTarget{} : target(result.normalized),
                                     .output = target(result.output),
                                     .second_output = target(result.second_output),
                                     .rstd = forms.rstd ? result.rstd.mutable_data_ptr<float>() : nullptr},
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
  const std::optional<RowBranch>& branch = saved.branch;
  const bool has_sums = wanted[1] || wanted[2] || (branch && branch->wants_sums);
  const at::Tensor workspace =
      has_sums ? floats(grad, {cuda::column_sums_workspace(rows, channels, branch ? 3 : 2)}) : at::Tensor();
  result.weight = wanted[1] ? floats(grad, row) : at::Tensor();
  result.bias = wanted[2] ? floats(grad, row) : at::Tensor();
  const at::Tensor normalized = saved.normalized.defined() ? saved.normalized.contiguous() : grad;
  if (wanted[0]) {
    result.input = dense_like(grad, saved.dtype);
  }
  cuda::RowTarget grad_branch;
  if (branch) {
    const bool is_of_input = branch->probability == 0.0 && branch->dtype == saved.dtype;
    result.branch.grad = is_of_input ? result.input : dense_like(grad, branch->dtype);
    result.branch.sums = branch->wants_sums ? floats(grad, {channels}) : at::Tensor();
    grad_branch = target_of(result.branch.grad);
    grad_branch.elements = is_of_input ? nullptr : grad_branch.elements;
  }
  const bool drops = branch && branch->probability > 0.0;
  const auto sums_of = [](const at::Tensor& sums) { return sums.defined() ? sums.mutable_data_ptr<float>() : nullptr; };
  check_launch(cuda::normalize_rows_backward({.rows = rows,
                                              .channels = channels,
                                              .is_centered = norm.is_centered,
                                              .grad = source_of(grad),
                                              .second_grad = source_of(second),
                                              .normalized = source_of(normalized),
                                              .weight = source_of(weight),
                                              .rstd = wanted[0] ? saved.rstd.const_data_ptr<float>() : nullptr,
                                              .residual_grad = source_of(residual),
                                              .grad_input = wanted[0] ? target_of(result.input) : cuda::RowTarget{},
                                              .has_branch = branch.has_value(),
                                              .dropout = drops ? branch->probability : 0.0,
                                              .random = drops ? random_source(branch->state) : cuda::RandomSource{},
                                              .grad_branch = grad_branch,
                                              .branch_sums = sums_of(result.branch.sums),
                                              .grad_weight = sums_of(result.weight),
                                              .grad_bias = sums_of(result.bias),
                                              .workspace = sums_of(workspace)},
                                             current_stream()));
  return result;
}

SummedGradient activate_rows_backward_cuda(ActivationKind kind, const at::Tensor& x, const at::Tensor& grad,
                                           bool wants_sums) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = x.contiguous();
  const bool holds_result = is_free(grad);
  const at::Tensor gradient = grad.contiguous();
  const int64_t channels = input.size(-1);
  const int64_t rows = rows_of(input, channels);
  Sums sums(gradient, rows, channels, wants_sums);
  const SummedGradient result{holds_result ? gradient : dense_like(gradient, gradient.scalar_type()), sums.sums};
  check_launch(cuda::activate_rows_backward({.rows = rows,
                                             .channels = channels,
                                             .kind = kind,
                                             .x = source_of(input),
                                             .grad = source_of(gradient),
                                             .grad_x = target_of(result.grad),
                                             .grad_bias = sums.data(),
                                             .workspace = sums.workspace_data()},
                                            current_stream()));
  return result;
}

ActivatedRows activate_and_pack_rows_cuda(ActivationKind kind, const at::Tensor& x,
                                          const std::optional<at::Tensor>& gate,
                                          const ColumnQuantization& quantization) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = at_vectors(x);
  const at::Tensor factor = gate ? at_vectors(with_dtype(*gate, x.scalar_type())) : at::Tensor();
  const int64_t channels = input.size(-1);
  const ColumnLayout<int64_t> layout{rows_of(input, channels), channels, quantization.group_rows,
                                     static_cast<int>(quantization.bits), 0};
  const ActivatedRows result{dense_like(input, input.scalar_type()), empty_bytes(layout.bytes(), input)};
  check_launch(cuda::activate_and_pack_columns({.x = {.elements = input.const_data_ptr(),
                                                      .type = check_element_type(kName, input.scalar_type()),
                                                      .layout = layout,
                                                      .packed = result.packed.mutable_data_ptr<uint8_t>(),
                                                      .random = random_source(std::nullopt),
                                                      .rounding = quantization.rounding},
                                                .kind = kind,
                                                .gate = factor.defined() ? factor.const_data_ptr() : nullptr,
                                                .output = result.output.mutable_data_ptr()},
                                               current_stream()));
  return result;
}

ActivationGradients activate_packed_rows_backward_cuda(ActivationKind kind, const PackedRows& x,
                                                       const std::optional<at::Tensor>& gate, const at::Tensor& grad,
                                                       const WantedOfActivation& wanted) {
  const c10::cuda::CUDAGuard guard(grad.device());
  const bool holds_result = is_free(grad);
  const at::Tensor gradient = at_vectors(grad);
  const at::Tensor factor = gate ? at_vectors(with_dtype(*gate, grad.scalar_type())) : at::Tensor();
  const at::Tensor packed = aligned_bytes(x.packed);
  const auto empty = [&] { return dense_like(gradient, gradient.scalar_type()); };
  const int64_t channels = gradient.size(-1);
  const ColumnLayout<int64_t> layout{rows_of(gradient, channels), channels, x.group_rows, static_cast<int>(x.bits), 0};
  TORCH_CHECK_VALUE(packed.numel() == layout.bytes(), kName, ": packed rows must have ", layout.bytes(), " bytes, got ",
                    packed.numel());
  ActivationGradients result{.x = holds_result && gradient.is_same(grad) ? gradient : empty(),
                             .gate = wanted.gate ? empty() : at::Tensor(),
                             .output = wanted.output ? empty() : at::Tensor(),
                             .sums = wanted.sums ? floats(gradient, {channels}) : at::Tensor()};
  const at::Tensor workspace =
      wanted.sums ? floats(gradient, {cuda::column_activation_workspace(layout)}) : at::Tensor();
  const auto memory_of = [](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
  };
  check_launch(cuda::activate_columns_backward({.packed = packed.const_data_ptr<uint8_t>(),
                                                .layout = layout,
                                                .kind = kind,
                                                .type = check_element_type(kName, gradient.scalar_type()),
                                                .grad = gradient.const_data_ptr(),
                                                .gate = factor.defined() ? factor.const_data_ptr() : nullptr,
                                                .output = memory_of(result.output),
                                                .grad_x = result.x.mutable_data_ptr(),
                                                .grad_gate = memory_of(result.gate),
                                                .grad_bias = static_cast<float*>(memory_of(result.sums)),
                                                .workspace = static_cast<float*>(memory_of(workspace))},
                                               current_stream()));
  return result;
}

SummedRows add_rows_cuda(const at::Tensor& x, const at::Tensor& residual, double probability, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor first = x.contiguous();
  const at::Tensor second = residual.contiguous();
  const bool drops = probability > 0.0;
  SummedRows result{dense_like(first, dtype), drops ? empty_state(x) : at::Tensor()};
  const int64_t channels = first.size(-1);
  check_launch(cuda::add_rows({.rows = rows_of(first, channels),
                               .channels = channels,
                               .x = source_of(first),
                               .residual = source_of(second),
                               .dropout = probability,
                               .random = drops ? random_source(std::nullopt) : cuda::RandomSource{},
                               .used_state = state_of(result.state),
                               .output = target_of(result.output)},
                              current_stream()));
  return result;
}

SummedGradient add_rows_backward_cuda(const at::Tensor& grad, double probability, const at::Tensor& state,
                                      at::ScalarType dtype, bool wants_sums) {
  const c10::cuda::CUDAGuard guard(grad.device());
  const at::Tensor gradient = grad.contiguous();
  const int64_t channels = gradient.size(-1);
  const int64_t rows = rows_of(gradient, channels);
  Sums sums(gradient, rows, channels, wants_sums);
  const SummedGradient result{dense_like(gradient, dtype), sums.sums};
  check_launch(cuda::drop_rows({.rows = rows,
                                .channels = channels,
                                .grad = source_of(gradient),
                                .dropout = probability,
                                .random = probability > 0.0 ? random_source(state) : cuda::RandomSource{},
                                .output = target_of(result.grad),
                                .sums = sums.data(),
                                .workspace = sums.workspace_data()},
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

GatedGradients gate_rows_backward_cuda(ActivationKind kind, const at::Tensor& x, const at::Tensor& gate,
                                       const at::Tensor& grad) {
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

std::vector<at::Tensor> sum_rows_cuda(const std::vector<at::Tensor>& matrices) {
  const c10::cuda::CUDAGuard guard(matrices.front().device());
  const int64_t channels = matrices.front().size(-1);
  const int64_t rows = rows_of(matrices.front(), channels);
  std::vector<at::Tensor> sums;
  for (size_t first = 0; first < matrices.size(); first += cuda::kMostSummed) {
    const size_t count = std::min(matrices.size() - first, size_t{cuda::kMostSummed});
    const at::Tensor workspace =
        floats(matrices.front(), {cuda::column_sums_workspace(rows, channels, static_cast<int>(count))});
    cuda::SumRows arguments{.rows = rows,
                            .channels = channels,
                            .count = static_cast<int>(count),
                            .matrices = {},
                            .sums = {},
                            .workspace = workspace.mutable_data_ptr<float>()};
    std::vector<at::Tensor> sources;  // as long as the launch
    for (size_t i = 0; i < count; ++i) {
      sources.push_back(matrices[first + i].contiguous());
      sums.push_back(floats(matrices.front(), {channels}));
      arguments.matrices[i] = source_of(sources.back());
      arguments.sums[i] = sums.back().mutable_data_ptr<float>();
    }
    check_launch(cuda::sum_rows(arguments, current_stream()));
  }
  return sums;
}

bool has_rotation_kernel(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines) {
  if (!x.is_cuda() || is_traced(x) || x.dim() != 4 || x.numel() == 0 || x.stride(-1) != 1) {
    return false;
  }
  const auto is_of_positions = [&](const at::Tensor& angles) {
    return angles.dim() == 4 && (angles.size(0) == 1 || angles.size(0) == x.size(0)) && angles.size(1) == 1 &&
           angles.size(2) == x.size(2) && angles.size(3) == x.size(3) && angles.stride(3) == 1;
  };
  return is_of_positions(cosines) && is_of_positions(sines) && cosines.strides() == sines.strides();
}

at::Tensor rotate_cuda(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines, bool back) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor result = x.is_non_overlapping_and_dense()
                                ? at::empty_like(x)
                                : at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options()).transpose(1, 2);
  check_launch(cuda::rotate_heads({.batch = x.size(0),
                                   .heads = x.size(1),
                                   .length = x.size(2),
                                   .size = x.size(3),
                                   .strides = {x.stride(0), x.stride(1), x.stride(2)},
                                   .of_output = {result.stride(0), result.stride(1), result.stride(2)},
                                   .of_angles = {cosines.size(0) == 1 ? 0 : cosines.stride(0), cosines.stride(2)},
                                   .x = source_of(x),
                                   .cosines = source_of(cosines),
                                   .sines = source_of(sines),
                                   .back = back,
                                   .output = target_of(result)},
                                  current_stream()));
  return result;
}

at::Tensor cross_entropy_rows_cuda(at::Tensor& logits, int64_t classes, const at::Tensor& target,
                                   const CrossEntropy& how, bool writes_gradient, const at::Tensor& kept) {
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
                                         .loss = loss.mutable_data_ptr<float>(),
                                         .kept = kept.defined() ? kept.mutable_data_ptr() : nullptr},
                                        current_stream()));
  return loss;
}

}  // namespace actnn
