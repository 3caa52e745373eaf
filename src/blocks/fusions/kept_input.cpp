#include "src/blocks/fusions/kept_input.h"

#include <optional>
#include <utility>

#include "src/blocks/run.h"
#include "src/ops/activation_functions.h"
#include "src/ops/rows.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

bool is_smooth(ActivationKind kind) {
  return kind == ActivationKind::kSiLU || kind == ActivationKind::kGELU || kind == ActivationKind::kGELUTanh;
}

std::vector<Need> KeptInputActivation::needs(const Wants& wants) const {
  return wants.wants(inputs[0]) ? std::vector<Need>{input_copy()} : std::vector<Need>{};
}

std::vector<at::Tensor> KeptInputActivation::compute(Operands& operands) const {
  return {activate(kind, with_dtype(operands.value(inputs[0]), operands.dtype(output())))};
}

void KeptInputActivation::forward(ForwardRun& run) const {
  const std::optional<ColumnQuantization> packing = run.packing(inputs[0]);
  if (!packing) {
    return Step::forward(run);
  }
  ActivatedRows rows = activate_and_pack_rows(kind, run.value(inputs[0]), {}, *packing);
  run.save(inputs[0], Form::kCopy, {std::move(rows.packed)});
  run.set(output(), std::move(rows.output));
}

at::Tensor KeptInputActivation::copy_from_saved(BackwardRun& run, at::ScalarType dtype) const {
  return activate(kind, run.copy(inputs[0], dtype));
}

bool KeptInputActivation::gives_copy(BackwardRun& run) const {
  return run.wants(inputs[0]) && run.packed_rows(inputs[0], run.dtype(output()));
}

void KeptInputActivation::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (!run.wants(inputs[0])) {
    return;
  }
  const bool wants_sums = run.reads_sums(inputs[0]);
  if (const std::optional<PackedRows> packed = run.packed_rows(inputs[0], grad.scalar_type())) {
    const ActivationGradients gradients = activate_packed_rows_backward(
        kind, *packed, {}, grad, {.output = run.is_awaited(output()), .sums = wants_sums});
    if (gradients.output.defined()) {
      run.give_copy(output(), gradients.output);
    }
    run.add(inputs[0], SummedGradient{gradients.x, gradients.sums});
  } else {
    const at::Tensor input = run.copy(inputs[0], grad.scalar_type());
    run.add(inputs[0], activate_rows_backward(kind, input, grad, wants_sums));
  }
}

}  // namespace actnn::blocks
