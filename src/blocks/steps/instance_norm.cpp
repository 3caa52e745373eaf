#include "src/blocks/steps/instance_norm.h"

#include <ATen/Context.h>
#include <ATen/ops/instance_norm.h>
#include <ATen/ops/native_batch_norm.h>

#include <tuple>
#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/sample_norm.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

at::Tensor instance_norm_of(const InstanceNorm& norm, Operands& operands, const at::Tensor& input) {
  return at::instance_norm(input, norm_parameter(operands.parameter(norm.weight), input),
                           norm_parameter(operands.parameter(norm.bias), input), std::nullopt, std::nullopt,
                           /*use_input_stats=*/true, /*momentum=*/0.0, norm.eps,
                           at::globalContext().userEnabledCuDNN());
}

/// (x-hat, 1 / deviation [N, C]), by a batch norm whose channels are all channels of all samples.
std::pair<at::Tensor, at::Tensor> normalize_instances(const at::Tensor& input, double eps) {
  Sizes size = input.sym_sizes().vec();
  const c10::SymInt batch = std::exchange(size[0], 1);
  const c10::SymInt channels = std::exchange(size[1], batch * size[1]);
  auto [normalized, mean, rstd] =
      at::native_batch_norm(input.contiguous().view_symint(size), std::nullopt, std::nullopt, std::nullopt,
                            std::nullopt, /*training=*/true, /*momentum=*/0.0, eps);
  return {normalized.view_symint(input.sym_sizes()), rstd.view_symint({batch, channels})};
}

}  // namespace

void InstanceNorm::visit_fields(FieldVisitor& fields) {
  fields.optional("weight", weight);
  fields.optional("bias", bias);
  fields.required("eps", eps);
}

void InstanceNorm::check() const { check_inputs(*this, 1); }

std::vector<at::Tensor> InstanceNorm::compute(Operands& operands) const {
  return {instance_norm_of(*this, operands, with_dtype(operands.value(inputs[0]), operands.dtype(output())))};
}

void InstanceNorm::forward(ForwardRun& run) const {
  const at::Tensor input = with_dtype(run.value(inputs[0]), run.dtype(output()));
  if (run.saves(output(), Form::kNormalized)) {
    auto [normalized, rstd] = normalize_instances(input, eps);
    save_rstd(run, output(), rstd);
    save_normalized_copy(run, output(), normalized);
  }
  run.set(output(), in_layout(instance_norm_of(*this, run, input), run.layout(output())));
}

void InstanceNorm::backward(BackwardRun& run) const {
  // Torch takes groups as a plain number; channels are the parameters', and known.
  const int64_t channels = run.sizes(output())[1].guard_int(__FILE__, __LINE__);
  add_sample_norm_gradients(run, output(), norm_operands(), channels);
}

namespace {
const RegisterStep<InstanceNorm> kInstanceNormStep;
}

}  // namespace actnn::blocks
