#include "src/blocks/steps/normalized.h"

#include "src/ops/tensors.h"

namespace actnn::blocks {

std::array<bool, 3> NormOperands::wanted(const Wants& wants) const {
  return {wants.wants(input), wants.wants(weight), wants.wants(bias)};
}

std::vector<Need> NormOperands::needs(Value output, const Wants& wants) const {
  std::vector<Need> needs;
  if (wants.wants(input) || wants.wants(weight)) {
    needs.push_back({output, Form::kNormalized});
  }
  if (wants.wants(input)) {
    needs.push_back({output, Form::kStatistics});
  }
  return needs;
}

std::optional<at::Tensor> norm_parameter(const std::optional<at::Tensor>& parameter, const at::Tensor& input) {
  if (!parameter) {
    return std::nullopt;
  }
  const bool stays = input.is_cpu() && parameter->scalar_type() == at::kFloat;
  return (stays ? *parameter : with_dtype(*parameter, input.scalar_type())).contiguous();
}

at::Tensor copy_from_normalized(BackwardRun& run, Value output, const NormOperands& norm, at::ScalarType dtype) {
  return with_dtype(unpack_affine_copy(run.saved(output, Form::kNormalized), run.saved_format(output),
                                       run.sizes(output), run.layout(output), decoding_dtype(run.dtype(output), dtype),
                                       run.parameter(norm.weight), run.parameter(norm.bias)),
                    dtype);
}

void save_normalized_copy(ForwardRun& run, Value output, const at::Tensor& normalized) {
  run.save(output, Form::kNormalized,
           pack_copy(in_layout(normalized, run.layout(output)), run.saved_format(output), run.layout(output),
                     run.rounding()));
}

void save_rstd(ForwardRun& run, Value output, const at::Tensor& rstd) {
  if (run.saves(output, Form::kStatistics)) {
    run.save(output, Form::kStatistics, {with_dtype(rstd, at::kFloat)});
  }
}

NormGradient norm_gradient(BackwardRun& run, Value output) {
  const at::Tensor grad = run.take_joined(output);
  const at::ScalarType dtype = grad.is_cuda() ? run.dtype(output) : at::kFloat;
  return {with_dtype(grad, dtype), run.unpacked_form(output, Form::kNormalized, dtype)};
}

std::optional<at::Tensor> parameter_like(BackwardRun& run, const std::optional<ParameterIndex>& index,
                                         const at::Tensor& like) {
  return index ? std::optional(with_dtype(run.parameter(*index), like.scalar_type()).contiguous()) : std::nullopt;
}

}  // namespace actnn::blocks
