#include "src/ops/rows.h"

#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "actnn/core/dropout.h"
#include "actnn/ops/dropout.h"
#include "src/ops/activation_functions.h"
#include "src/ops/row_kernels.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Sizes = std::vector<c10::SymInt>;

/// Sizes of a row.
Sizes row_of(const RowNorm& norm, const at::Tensor& tensor) {
  const auto size = tensor.sym_sizes();
  return {size.end() - norm.dimensions, size.end()};
}

/// Sizes of a number per row.
Sizes per_row(const RowNorm& norm, const at::Tensor& tensor) {
  Sizes size = tensor.sym_sizes().vec();
  std::fill(size.end() - norm.dimensions, size.end(), c10::SymInt(1));
  return size;
}

std::vector<int64_t> last_dimensions(const RowNorm& norm) {
  std::vector<int64_t> dimensions(norm.dimensions);
  std::iota(dimensions.begin(), dimensions.end(), -norm.dimensions);
  return dimensions;
}

/// A parameter as torch's kernels take it: on the CPU it may stay in float32 where the input does not.
OptionalTensor parameter_for(const OptionalTensor& parameter, const at::Tensor& input) {
  if (!parameter) {
    return std::nullopt;
  }
  const bool stays = input.is_cpu() && parameter->scalar_type() == at::kFloat;
  return (stays ? *parameter : with_dtype(*parameter, input.scalar_type())).contiguous();
}

OptionalTensor parameter_like(const OptionalTensor& parameter, const at::Tensor& like) {
  return parameter ? OptionalTensor(with_dtype(*parameter, like.scalar_type()).contiguous()) : std::nullopt;
}

NormalizedRows normalize_by_deviation(const RowNorm& norm, const at::Tensor& input, bool keeps_normalized) {
  const Sizes row = row_of(norm, input);
  auto [output, mean, rstd] = at::native_layer_norm_symint(input, row, parameter_for(norm.weight, input),
                                                           parameter_for(norm.bias, input), norm.eps);
  at::Tensor normalized;
  if (keeps_normalized) {
    normalized = norm.weight || norm.bias
                     ? std::get<0>(at::native_layer_norm_symint(input, row, std::nullopt, std::nullopt, norm.eps))
                     : output;
  }
  return {.output = std::move(output),
          .second_output = {},
          .normalized = std::move(normalized),
          .rstd = std::move(rstd),
          .sum = {},
          .state = {}};
}

NormalizedRows normalize_by_mean_square(const RowNorm& norm, const at::Tensor& input, bool keeps_normalized,
                                        bool keeps_rstd) {
  const Sizes row = row_of(norm, input);
  NormalizedRows result{.output = at::rms_norm_symint(input, row, parameter_for(norm.weight, input), norm.eps),
                        .second_output = {},
                        .normalized = {},
                        .rstd = {},
                        .sum = {},
                        .state = {}};
  if (keeps_normalized) {
    result.normalized = norm.weight ? at::rms_norm_symint(input, row, std::nullopt, norm.eps) : result.output;
  }
  if (keeps_rstd) {
    result.rstd = at::linalg_vector_norm(input, 2, last_dimensions(norm), /*keepdim=*/true, /*dtype=*/at::kFloat)
                      .square_()
                      .div_(c10::Scalar(element_count(row)))
                      .add_(norm.eps)
                      .rsqrt_();
  }
  return result;
}

/// Over all dimensions but the row's.
at::Tensor sum_to_row(const RowNorm& norm, const at::Tensor& tensor) {
  const int64_t others = tensor.dim() - norm.dimensions;
  std::vector<int64_t> dimensions(others);
  std::iota(dimensions.begin(), dimensions.end(), 0);
  return others == 0 ? tensor : tensor.sum(dimensions);
}

/// But for the division by the root mean square.
std::pair<at::Tensor, at::Tensor> mean_square_gradients(const RowNorm& norm, const at::Tensor& grad,
                                                        const at::Tensor& normalized, std::array<bool, 3> wanted) {
  std::pair<at::Tensor, at::Tensor> result;
  if (wanted[1]) {
    result.second = sum_to_row(norm, grad.mul(normalized));
  }
  if (wanted[0]) {
    const OptionalTensor weight = parameter_like(norm.weight, grad);
    const at::Tensor weighted = weight ? grad.mul(*weight) : grad;
    result.first = weighted.sub(normalized.mul(weighted.mul(normalized).mean(last_dimensions(norm), /*keepdim=*/true)));
  }
  return result;
}

SummedGradient with_sums(at::Tensor grad, bool wants_sums) {
  at::Tensor sums =
      wants_sums ? grad.reshape_symint({-1, grad.sym_size(-1)}).sum(0, /*keepdim=*/false, at::kFloat) : at::Tensor();
  return {std::move(grad), std::move(sums)};
}

void check_parameters(const RowNorm& norm, const at::Tensor& input) {
  for (const auto& [name, parameter] : {std::pair("weight", norm.weight), std::pair("bias", norm.bias)}) {
    TORCH_CHECK_VALUE(!parameter || parameter->sym_sizes() == c10::SymIntArrayRef(row_of(norm, input)), "a norm's ",
                      name, " must have the shape of a row, ", c10::SymIntArrayRef(row_of(norm, input)), ", got shape ",
                      parameter->sym_sizes());
    TORCH_CHECK_VALUE(!parameter || parameter->device() == input.device(), "a norm's ", name, " must be on ",
                      input.device(), ", got ", parameter->device());
  }
}

bool are_rows(const RowNorm& norm, const at::Tensor& tensor) {
  return has_row_kernels(tensor, element_count(row_of(norm, tensor)));
}

bool are_rows(const at::Tensor& tensor) { return tensor.dim() > 0 && has_row_kernels(tensor, tensor.sym_size(-1)); }

/// However many channels there are.
bool have_sums_in_pass(const at::Tensor& matrix) { return matrix.dim() > 0 && has_row_kernels(matrix, 1); }

/// Whether the pass that normalizes rows can add to them. Dropout counts elements in fours.
bool adds_in_pass(const RowNorm& norm, const at::Tensor& input, const RowAddition& addition) {
  return are_rows(norm, input) && addition.residual.is_floating_point() && input.sizes() == addition.residual.sizes() &&
         (addition.probability == 0.0 || element_count(row_of(norm, input)) % kDropoutQuad == 0);
}

/// Whether the pass of a norm's backward can give the gradient of a branch: its sums are of the last dimension.
bool hands_on_in_pass(const RowNorm& norm, const RowNormSaved& saved) {
  return are_rows(norm, saved.grad) && norm.dimensions == 1 &&
         (saved.branch->probability == 0.0 || saved.grad.size(-1) % kDropoutQuad == 0);
}

NormalizedRows add_and_normalize_rows(const RowNorm& norm, const at::Tensor& input, NormalizedForms forms) {
  const RowAddition addition = *std::exchange(forms.addition, std::nullopt);
  SummedRows sum = add_rows(input, addition.residual, addition.probability, addition.dtype);
  NormalizedRows result = normalize_rows(norm, sum.output, forms);
  result.sum = addition.keeps_sum ? std::move(sum.output) : at::Tensor();
  result.state = std::move(sum.state);
  return result;
}

}  // namespace

NormalizedRows normalize_rows(const RowNorm& norm, const at::Tensor& input, const NormalizedForms& forms) {
  if (forms.addition && !adds_in_pass(norm, input, *forms.addition)) {
    return add_and_normalize_rows(norm, input, forms);
  }
  check_parameters(norm, input);
  if (are_rows(norm, input)) {
    return normalize_rows_cuda(norm, input, forms);
  }
  const at::Tensor x = with_dtype(input, c10::promoteTypes(input.scalar_type(), forms.dtype)).contiguous();
  NormalizedRows result = norm.is_centered
                              ? normalize_by_deviation(norm, x, forms.normalized.has_value())
                              : normalize_by_mean_square(norm, x, forms.normalized.has_value(), forms.rstd);
  result.second_output = forms.second ? with_dtype(result.output, *forms.second) : at::Tensor();
  result.output = with_dtype(result.output, forms.dtype);
  result.normalized = forms.normalized ? with_dtype(result.normalized, *forms.normalized) : at::Tensor();
  result.rstd = forms.rstd ? with_dtype(result.rstd, at::kFloat) : at::Tensor();
  return result;
}

RowNormGradients normalize_rows_backward(const RowNorm& norm, const RowNormSaved& saved, std::array<bool, 3> wanted) {
  if (saved.branch && !hands_on_in_pass(norm, saved)) {
    RowNormSaved alone = saved;
    const RowBranch branch = *std::exchange(alone.branch, std::nullopt);
    RowNormGradients result = normalize_rows_backward(norm, alone, wanted);
    result.branch = add_rows_backward(result.input, branch.probability, branch.state, branch.dtype, branch.wants_sums);
    return result;
  }
  if (are_rows(norm, saved.grad)) {
    return normalize_rows_backward_cuda(norm, saved, wanted);
  }
  const at::Tensor sum = saved.second_grad.defined() ? at::add(saved.grad, saved.second_grad) : saved.grad;
  RowNormGradients result;
  if (!wanted[0] && !wanted[1]) {
    result.bias = sum_to_row(norm, with_dtype(sum, at::kFloat));
    return result;
  }
  // The CPU computes in float32; CUDA's kernels do so themselves.
  const at::ScalarType dtype = sum.is_cuda() ? saved.normalized.scalar_type() : at::kFloat;
  const at::Tensor grad = with_dtype(sum, dtype).contiguous();
  const at::Tensor normalized = with_dtype(saved.normalized, dtype);
  if (norm.is_centered) {
    const auto statistics = grad.options().dtype(at::kFloat);
    const Sizes rows = per_row(norm, grad);
    std::tie(result.input, result.weight, result.bias) = at::native_layer_norm_backward_symint(
        grad, normalized, row_of(norm, grad), at::zeros_symint(rows, statistics), at::ones_symint(rows, statistics),
        parameter_like(norm.weight, grad), parameter_like(norm.bias, grad), wanted);
  } else {
    std::tie(result.input, result.weight) = mean_square_gradients(norm, grad, normalized, wanted);
  }
  if (wanted[0]) {
    result.input.mul_(saved.rstd);
    if (saved.residual_grad.defined()) {
      result.input = at::add(result.input, saved.residual_grad);
    }
    result.input = with_dtype(result.input, saved.dtype);
  }
  return result;
}

SummedGradient activate_rows_backward(ActivationKind kind, const at::Tensor& x, const at::Tensor& grad,
                                      bool wants_sums) {
  if (are_rows(x)) {
    return activate_rows_backward_cuda(kind, x, grad, wants_sums);
  }
  return with_sums(smooth_gradient(kind, grad, with_dtype(x, grad.scalar_type()), {}), wants_sums);
}

bool can_activate_and_pack_rows(const at::Tensor& x) {
  constexpr int64_t kVector = 8;  // elements that are packed together
  return x.dim() > 0 && x.element_size() == sizeof(uint16_t) && has_row_kernels(x, x.sym_size(-1)) &&
         x.sym_size(-1) % kVector == 0;
}

ActivatedRows activate_and_pack_rows(ActivationKind kind, const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                     const ColumnQuantization& quantization) {
  return activate_and_pack_rows_cuda(kind, x, gate, quantization);
}

bool can_activate_packed_rows(const at::Tensor& packed, const c10::SymInt& channels) {
  constexpr int64_t kVector = 4;  // elements that are unpacked together
  return has_row_kernels(packed, channels) && channels % kVector == 0;
}

ActivationGradients activate_packed_rows_backward(ActivationKind kind, const PackedRows& x,
                                                  const std::optional<at::Tensor>& gate, const at::Tensor& grad,
                                                  const WantedOfActivation& wanted) {
  return activate_packed_rows_backward_cuda(kind, x, gate, grad, wanted);
}

SummedRows add_rows(const at::Tensor& x, const at::Tensor& residual, double probability, at::ScalarType dtype) {
  // Dropout counts elements in fours.
  if (are_rows(x) && x.sizes() == residual.sizes() && (probability == 0.0 || x.size(-1) % kDropoutQuad == 0)) {
    return add_rows_cuda(x, residual, probability, dtype);
  }
  if (probability == 0.0) {
    return {with_dtype(at::add(x, residual), dtype), {}};
  }
  auto [dropped, state] = dropout_forward(x.contiguous(), probability);
  return {with_dtype(at::add(dropped, residual), dtype), std::move(state)};
}

SummedGradient add_rows_backward(const at::Tensor& grad, double probability, const at::Tensor& state,
                                 at::ScalarType dtype, bool wants_sums) {
  if (are_rows(grad) && (probability == 0.0 || grad.size(-1) % kDropoutQuad == 0)) {
    return add_rows_backward_cuda(grad, probability, state, dtype, wants_sums);
  }
  at::Tensor result = with_dtype(grad, dtype).contiguous();
  if (probability > 0.0) {
    result = apply_dropout(result, probability, state, result.sym_strides());
  }
  return with_sums(std::move(result), wants_sums);
}

at::Tensor gate_rows(ActivationKind kind, const at::Tensor& x, const at::Tensor& gate) {
  return are_rows(x) ? gate_rows_cuda(kind, x, gate) : activate(kind, x).mul_(gate);
}

GatedGradients gate_rows_backward(ActivationKind kind, const at::Tensor& x, const at::Tensor& gate,
                                  const at::Tensor& grad) {
  if (are_rows(x)) {
    return gate_rows_backward_cuda(kind, x, gate, grad);
  }
  return {smooth_gradient(kind, at::mul(grad, gate), x, {}), activate(kind, x).mul_(grad)};
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines, bool back) {
  if (has_rotation_kernel(x, cosines, sines)) {
    return rotate_cuda(x, cosines, sines, back);
  }
  // Turning back is (g sin) with its halves exchanged and the first negated.
  const at::Tensor turned = back ? at::mul(x, sines) : x;
  const c10::SymInt half = x.sym_size(-1) / 2;
  const at::Tensor first = turned.slice_symint(-1, 0, half);
  const at::Tensor second = turned.slice_symint(-1, half);
  const at::Tensor exchanged = back ? at::cat({second, first.neg()}, -1) : at::cat({second.neg(), first}, -1);
  return with_dtype(at::mul(x, cosines).add_(back ? exchanged : at::mul(exchanged, sines)), x.scalar_type());
}

at::Tensor sum_rows(const at::Tensor& matrix) {
  return have_sums_in_pass(matrix) ? sum_rows_cuda({matrix})[0]
                                   : matrix.reshape_symint({-1, matrix.sym_size(-1)}).sum(0);
}

std::vector<at::Tensor> sum_rows(const std::vector<at::Tensor>& matrices) {
  if (std::all_of(matrices.begin(), matrices.end(), have_sums_in_pass)) {
    return sum_rows_cuda(matrices);
  }
  std::vector<at::Tensor> sums(matrices.size());
  std::transform(matrices.begin(), matrices.end(), sums.begin(),
                 [](const at::Tensor& matrix) { return sum_rows(matrix); });
  return sums;
}

}  // namespace actnn
