#include "src/blocks/steps/group_norm.h"

#include <ATen/ops/native_group_norm.h>
#include <c10/util/Exception.h>

#include <tuple>
#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/sample_norm.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

/// The input in its dtype and the layout that torch's kernels take.
at::Tensor group_norm_input(const GroupNorm& norm, Operands& operands) {
  const at::Tensor input = with_dtype(operands.value(norm.inputs[0]), operands.dtype(norm.output()));
  return input.contiguous(input.is_cpu() ? input.suggest_memory_format() : at::MemoryFormat::Contiguous);
}

/// (output, mean, 1 / deviation).
std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_of(const GroupNorm& norm, const at::Tensor& input,
                                                             const std::optional<at::Tensor>& weight,
                                                             const std::optional<at::Tensor>& bias) {
  return at::native_group_norm_symint(input, norm_parameter(weight, input), norm_parameter(bias, input),
                                      input.sym_size(0), input.sym_size(1),
                                      element_count(input.sym_sizes().slice(2).vec()), norm.groups, norm.eps);
}

}  // namespace

void GroupNorm::visit_fields(FieldVisitor& fields) {
  fields.optional("weight", weight);
  fields.optional("bias", bias);
  fields.required("groups", groups);
  fields.required("eps", eps);
}

void GroupNorm::check() const {
  check_inputs(*this, 1);
  TORCH_CHECK_VALUE(groups > 0, "block: group_norm must have at least one group, got ", groups);
}

std::vector<at::Tensor> GroupNorm::compute(Operands& operands) const {
  return {std::get<0>(
      group_norm_of(*this, group_norm_input(*this, operands), operands.parameter(weight), operands.parameter(bias)))};
}

void GroupNorm::forward(ForwardRun& run) const {
  const at::Tensor input = group_norm_input(*this, run);
  auto [result, mean, rstd] = group_norm_of(*this, input, run.parameter(weight), run.parameter(bias));
  save_rstd(run, output(), rstd);
  save_normalized(run, output(), [&, &result = result] {
    return weight || bias ? std::get<0>(group_norm_of(*this, input, std::nullopt, std::nullopt)) : result;
  });
  run.set(output(), in_layout(result, run.layout(output())));
}

void GroupNorm::backward(BackwardRun& run) const { add_sample_norm_gradients(run, output(), norm_operands(), groups); }

namespace {
const RegisterStep<GroupNorm> kGroupNormStep;
}

}  // namespace actnn::blocks
