#include "src/blocks/fusions/gated_activation.h"

#include <ATen/ops/mul.h>

#include <optional>
#include <utility>

#include "src/blocks/fusions/fusion.h"
#include "src/blocks/fusions/kept_input.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/activation.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/multiply.h"
#include "src/ops/activation_functions.h"
#include "src/ops/rows.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

at::Tensor gated(ActivationKind kind, const at::Tensor& x, const at::Tensor& gate) {
  return x.sym_sizes() == gate.sym_sizes() ? gate_rows(kind, x, gate) : at::mul(activate(kind, x), gate);
}

}  // namespace

std::vector<Sizes> GatedActivation::infer_sizes(const KnownSizes& known) const {
  return {broadcast(known.sizes(inputs[0]), known.sizes(inputs[1]))};
}

std::vector<Need> GatedActivation::needs(const Wants& wants) const {
  if (!wants.wants(inputs[0])) {
    return wants.wants(inputs[1]) ? std::vector<Need>{copies()[0]} : std::vector<Need>{};
  }
  return copies();
}

std::vector<at::Tensor> GatedActivation::compute(Operands& operands) const {
  const at::ScalarType dtype = operands.dtype(output());
  return {gated(kind, with_dtype(operands.value(inputs[0]), dtype), with_dtype(operands.value(inputs[1]), dtype))};
}

void GatedActivation::forward(ForwardRun& run) const {
  const at::Tensor x = run.value(inputs[0]);
  const at::Tensor gate = run.value(inputs[1]);
  const std::optional<ColumnQuantization> packing = run.packing(inputs[0]);
  if (!packing || gate.sym_sizes() != x.sym_sizes()) {
    return Step::forward(run);
  }
  ActivatedRows rows = activate_and_pack_rows(kind, x, gate, *packing);
  run.save(inputs[0], Form::kCopy, {std::move(rows.packed)});
  run.set(output(), std::move(rows.output));
}

at::Tensor GatedActivation::copy_from_saved(BackwardRun& run, at::ScalarType dtype) const {
  return gated(kind, run.copy(inputs[0], dtype), run.copy(inputs[1], dtype));
}

bool GatedActivation::gives_copy(BackwardRun& run) const {
  return run.wants(inputs[0]) && run.sizes(inputs[0]) == run.sizes(inputs[1]) &&
         run.packed_rows(inputs[0], run.dtype(output()));
}

void GatedActivation::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  const at::ScalarType dtype = grad.scalar_type();
  const bool wants_x = run.wants(inputs[0]);
  const bool wants_gate = run.wants(inputs[1]);
  if (!wants_x && !wants_gate) {
    return;
  }
  if (wants_x && run.sizes(inputs[0]) == run.sizes(inputs[1])) {
    if (const std::optional<PackedRows> packed = run.packed_rows(inputs[0], dtype)) {
      const ActivationGradients gradients = activate_packed_rows_backward(
          kind, *packed, run.copy(inputs[1], dtype), grad, {.gate = wants_gate, .output = run.is_awaited(output())});
      if (gradients.output.defined()) {
        run.give_copy(output(), gradients.output);
      }
      run.add(inputs[0], gradients.x);
      if (wants_gate) {
        run.add(inputs[1], gradients.gate);
      }
      return;
    }
  }
  const at::Tensor x = run.copy(inputs[0], dtype);
  if (!wants_x) {
    run.add(inputs[1], sum_to(activate(kind, x).mul(grad), run.sizes(inputs[1])));
    return;
  }
  const at::Tensor gate = run.copy(inputs[1], dtype);
  GatedGradients gradients;
  if (x.sym_sizes() == gate.sym_sizes()) {
    gradients = gate_rows_backward(kind, x, gate, grad);
  } else {
    gradients.gate = sum_to(activate(kind, x).mul(grad), run.sizes(inputs[1]));
    gradients.x = smooth_gradient(kind, sum_to(grad.mul(gate), run.sizes(inputs[0])), x, {});
  }
  run.add(inputs[0], std::move(gradients.x));
  if (wants_gate) {
    run.add(inputs[1], std::move(gradients.gate));
  }
}

std::vector<FusedPass> find_gated_activations(const Window& window) {
  std::vector<FusedPass> passes;
  const std::vector<StepPointer>& steps = window.program.steps;
  for (size_t place = 0; place < steps.size(); ++place) {
    const auto* product = dynamic_cast<const Multiply*>(steps[place].get());
    if (product == nullptr || product->inputs[0] == product->inputs[1]) {
      continue;
    }
    for (const size_t side : {0, 1}) {
      const Value activated = product->inputs[side];
      const Value gate = product->inputs[1 - side];
      const auto* activation = window.made_by<Activation>(activated);
      if (activation != nullptr && is_smooth(activation->kind) && window.sole_reader(activated) == place &&
          window.layouts[product->output().number] == Layout::kPlain && !window.is_input(activation->inputs[0]) &&
          !window.options.exact.contains(activated) &&
          window.have_one_dtype({activation->inputs[0], gate, product->output()})) {
        passes.push_back({std::make_shared<GatedActivation>(activation->kind, window.options.smooth_bits,
                                                            activation->inputs[0], gate, product->output()),
                          {*window.maker(activated), place},
                          place});
        break;
      }
    }
  }
  return passes;
}

}  // namespace actnn::blocks
