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

at::Tensor copy_from_normalized(BackwardRun& run, Value output, const NormOperands& norm) {
  const Sizes& sizes = run.sizes(output);
  const at::ScalarType dtype = run.dtype(output);
  at::Tensor copy =
      unpack_copy(run.saved(output, Form::kNormalized), run.saved_format(output), sizes, run.layout(output), dtype);
  const auto broadcast = [&](const at::Tensor& parameter) {
    if (run.layout(output) == Layout::kPlain) {
      return with_dtype(parameter, dtype);
    }
    Sizes per_channel(sizes.size(), 1);
    per_channel[1] = sizes[1];
    return with_dtype(parameter, dtype).view_symint(per_channel);
  };
  if (norm.weight) {
    copy.mul_(broadcast(run.parameter(*norm.weight)));
  }
  if (norm.bias) {
    copy.add_(broadcast(run.parameter(*norm.bias)));
  }
  return copy;
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
  return {with_dtype(grad, dtype), unpack_copy(run.saved(output, Form::kNormalized), run.saved_format(output),
                                               run.sizes(output), run.layout(output), dtype)};
}

std::optional<at::Tensor> parameter_like(BackwardRun& run, const std::optional<ParameterIndex>& index,
                                         const at::Tensor& like) {
  return index ? std::optional(with_dtype(run.parameter(*index), like.scalar_type()).contiguous()) : std::nullopt;
}

}  // namespace actnn::blocks
