#include "src/blocks/fusions/norm_act.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "actnn/ops/norm_act.h"
#include "src/autograd/add_act_gradient.h"
#include "src/blocks/run.h"
#include "src/blocks/synchronized_norm.h"
#include "src/ops/channel_matrix.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

/// Places among the tensors of `Form::kStatistics`.
enum Statistic : size_t { kDecode, kRstd, kChannels };

}  // namespace

std::vector<ParameterIndex> NormAct::parameters() const {
  return norm ? norm->parameters() : std::vector<ParameterIndex>{};
}

/// Whether backward needs the normalized input: for the norm's weight, or because statistics depend on the input.
bool NormAct::needs_normalized(const Wants& wants) const {
  return norm && (wants.wants(norm->weight) || (norm->training && wants.wants(inputs[0])));
}

bool NormAct::saves_channels(const Wants& wants) const {
  return norm && (has_residual ? !packs_normalized(wants) : recompute);
}

std::optional<CopyFormat> NormAct::packs(Value /*output*/) const {
  if (!bits) {
    return std::nullopt;
  }
  return CopyFormat{.kind = CopyFormat::Kind::kPass, .bits = *bits, .activation = activation};
}

std::vector<Need> NormAct::needs(const Wants& wants) const {
  std::vector<Need> needs;
  if (packs(output())) {
    needs.push_back({output(), Form::kCopy});
  }
  if (packs_normalized(wants)) {
    needs.push_back({output(), Form::kNormalized, 1, norm_bits});
  }
  if (norm) {
    const size_t parts = 2 + (saves_channels(wants) ? 1 : 0) + (norm->group_name && norm->training ? 1 : 0);
    needs.push_back({output(), Form::kStatistics, parts});
  }
  if (recompute && needs_normalized(wants)) {
    needs.push_back({inputs[0], Form::kCopy});
  }
  return needs;
}

/// (channels, decode, rstd) of the norm; `rows` if they are those of all ranks.
std::tuple<at::Tensor, at::Tensor, at::Tensor> NormAct::normalize(ForwardRun& run, const at::Tensor& x,
                                                                  at::Tensor& rows) const {
  const bool kinked = has_kink(activation.function) && !has_residual;
  const OptionalTensor weight = in_float(run.Operands::parameter(norm->weight));
  const OptionalTensor bias = in_float(run.Operands::parameter(norm->bias));
  const OptionalTensor running_mean = run.buffer(norm->running_mean);
  const OptionalTensor running_var = run.buffer(norm->running_var);
  if (!norm->training) {
    return norm_act_channels(with_dtype(*running_mean, at::kFloat), with_dtype(*running_var, at::kFloat), weight, bias,
                             norm->eps, kinked);
  }
  if (norm->group_name) {
    return synchronized_channels(*norm, run, x, kinked, rows);
  }
  if (x.sym_size(0) == 0) {
    const at::Tensor none = at::zeros_symint({x.sym_size(1)}, x.options().dtype(at::kFloat));
    return norm_act_channels(none, none, weight, bias, norm->eps, kinked);
  }
  TORCH_CHECK_VALUE(x.sym_size(0) > 1, "block: expected more than 1 value per channel when training, got input size ",
                    run.value(inputs[0]).sym_sizes());
  return batch_norm_channels(x, weight, bias, running_mean, running_var, run.buffer(norm->num_batches_tracked),
                             norm->momentum, norm->eps, kinked);
}

std::vector<at::Tensor> NormAct::compute(Operands& /*operands*/) const {
  TORCH_INTERNAL_ASSERT(false, "block: the output of a norm is not computed again");
}

void NormAct::forward(ForwardRun& run) const {
  const at::Tensor input = run.value(inputs[0]);
  const bool wants = run.wants(output());
  if (!norm && activation.function == ActivationFunction::kIdentity) {
    run.set(output(), at::add(input, run.value(inputs[1])));
    return;
  }
  const at::Tensor x = as_matrix(input);
  at::Tensor channels;
  at::Tensor decode;
  if (norm) {
    at::Tensor rows;
    at::Tensor rstd;
    std::tie(channels, decode, rstd) = normalize(run, x, rows);
    if (wants) {
      std::vector<at::Tensor> statistics{decode, rstd};
      if (saves_channels(run)) {
        statistics.push_back(channels);
      }
      if (rows.defined()) {
        statistics.push_back(rows);
      }
      run.save(output(), Form::kStatistics, std::move(statistics));
    }
  }
  const at::Tensor norm_channels = channels;
  OptionalTensor residual;
  if (has_residual || !norm) {
    std::tie(channels, decode) = sum_channels(norm ? OptionalTensor(channels) : std::nullopt, x);
  }
  if (has_residual) {
    residual = as_matrix(with_dtype(run.value(inputs[1]), x.scalar_type()));
  }
  // Steps behind may need the output's copy where its own gradient is not wanted.
  const bool saves_copy = packs(output()) && run.saves(output(), Form::kCopy);
  const bool packs_now = wants || saves_copy;
  const NormActPacking packing{.bits = packs_now ? bits : std::nullopt,
                               .keeps_below = activation.slope != 0.0F || (norm && !has_residual),
                               .rounding = run.rounding()};
  at::Tensor y;
  at::Tensor packed;
  if (wants && packs_normalized(run)) {
    at::Tensor normalized;
    std::tie(y, packed, normalized) =
        norm_add_act(x, *residual, channels, norm_channels, activation, packing, *norm_bits);
    run.save(output(), Form::kNormalized, {std::move(normalized)});
  } else {
    std::tie(y, packed) = norm_act(x, residual, channels, activation, packing);
  }
  if (saves_copy) {
    run.save(output(), Form::kCopy, {packed, decode});
  }
  run.set(output(), from_matrix(y, input.sym_sizes()));
}

void NormAct::backward(BackwardRun& run) const {
  Gradient gradient = run.take(output());
  if (!norm) {
    pass_through(run, std::move(gradient));
    return;
  }
  const at::ScalarType dtype = run.dtype(output());
  const std::vector<c10::SymInt> size = gradient.first.sym_sizes().vec();
  bool owned = is_owned(gradient.first);
  const at::Tensor grad = as_matrix(with_dtype(gradient.first, dtype));
  owned = owned || !grad.is_alias_of(gradient.first);
  const OptionalTensor second =
      gradient.second.defined() ? OptionalTensor(as_matrix(with_dtype(gradient.second, dtype))) : std::nullopt;
  gradient = {};

  const std::vector<at::Tensor>& statistics = run.saved(output(), Form::kStatistics);
  const at::Tensor& decode = statistics[kDecode];
  const at::Tensor& rstd = statistics[kRstd];
  const bool wants_input = run.wants(inputs[0]);
  const bool wants_residual = has_residual && run.wants(inputs[1]);
  const bool wants_weight = run.Wants::wants(norm->weight);
  const bool normalized_needed = wants_weight || (wants_input && norm->training);
  NormActCopies copies{.packed = std::nullopt, .activation = activation, .bits = bits.value_or(0)};
  if (packs(output())) {
    copies.packed = run.saved(output(), Form::kCopy)[0];
  }
  if (norm_bits && run.has_saved(output(), Form::kNormalized)) {
    copies.normalized = run.saved(output(), Form::kNormalized)[0];
    copies.normalized_bits = *norm_bits;
  }
  at::Tensor input;
  bool owns_input = false;
  const bool has_channels = has_residual ? !copies.normalized : recompute;
  if (has_channels) {
    // What is not needed of it is multiplied by 0.
    const at::Tensor copy = normalized_needed && recompute ? run.copy(inputs[0]) : at::Tensor();
    owns_input = copy.defined() && is_owned(copy);  // not where the value itself is saved
    input = copy.defined() ? as_matrix(copy) : grad;
    copies.input = input;
    copies.channels = statistics[kChannels];
  }
  const OptionalTensor weight = in_float(run.parameter(norm->weight));
  auto [coefficients, grad_weight, grad_bias] = norm_act_sums_and_gradients(
      copies, grad, second, decode, weight, rstd, norm->training ? grad.sym_size(0) : c10::SymInt(0));
  if (wants_input && norm->group_name && norm->training) {
    coefficients = synchronized_gradients(*norm, decode, rstd, statistics.back(), weight, grad_weight, grad_bias);
  }
  if (wants_weight) {
    run.add(*norm->weight, std::move(grad_weight));
  }
  if (run.Wants::wants(norm->bias)) {
    run.add(*norm->bias, std::move(grad_bias));
  }
  if (!wants_input && !wants_residual) {
    return;
  }
  at::Tensor grad_input = owns_input ? input : owned && !wants_residual ? grad : at::empty_like(grad);
  const OptionalTensor grad_sum = wants_residual ? OptionalTensor(owned ? grad : at::empty_like(grad)) : std::nullopt;
  norm_act_input_gradient_out(copies, grad, second, coefficients, grad_input, grad_sum);
  if (wants_residual) {
    run.add(inputs[1], from_matrix(*grad_sum, size));
  }
  if (wants_input) {
    run.add(inputs[0], from_matrix(grad_input, size));
  }
}

/// Without a norm only the activation counts, for both summands.
void NormAct::pass_through(BackwardRun& run, Gradient gradient) const {
  if (activation.function != ActivationFunction::kIdentity) {
    const std::vector<at::Tensor>& copy = run.saved(output(), Form::kCopy);
    const at::ScalarType dtype = run.dtype(output());
    const std::vector<c10::SymInt> size = gradient.first.sym_sizes().vec();
    const at::Tensor grad = as_matrix(with_dtype(gradient.first, dtype));
    const OptionalTensor second =
        gradient.second.defined() ? OptionalTensor(as_matrix(with_dtype(gradient.second, dtype))) : std::nullopt;
    const at::Tensor result =
        add_act_gradient({.packed = copy[0], .activation = activation, .bits = *bits}, grad, second, copy[1]);
    gradient = {.first = from_matrix(result, size), .second = {}, .sums = {}};
  }
  gradient.join();
  if (has_residual && run.wants(inputs[1])) {
    run.add(inputs[1], gradient.first);
  }
  if (run.wants(inputs[0])) {
    run.add(inputs[0], std::move(gradient.first));
  }
}

}  // namespace actnn::blocks
