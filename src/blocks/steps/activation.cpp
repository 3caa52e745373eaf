#include "src/blocks/steps/activation.h"

#include <ATen/ops/where.h>

#include <string>
#include <utility>

#include "actnn/ops/mask.h"
#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/activation_functions.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void Activation::visit_fields(FieldVisitor& fields) {
  std::string name = name_of(kind);
  fields.required("kind", name);
  kind = activation_kind("block", name);
  fields.optional("slope", slope);
}

void Activation::check() const { check_inputs(*this, 1); }

std::vector<Need> Activation::needs(const Wants& wants) const {
  if (!wants.wants(inputs[0])) {
    return {};
  }
  return {{output(), is_piecewise(kind) ? Form::kMask : Form::kDerivative}};
}

std::vector<at::Tensor> Activation::compute(Operands& operands) const {
  return {activate(kind, with_dtype(operands.value(inputs[0]), operands.dtype(output())), slope)};
}

void Activation::forward(ForwardRun& run) const {
  const Layout layout = run.layout(output());
  const at::Tensor input = in_layout(with_dtype(run.value(inputs[0]), run.dtype(output())), layout);
  if (run.saves(output(), Form::kMask) && kind == ActivationKind::kReLU) {
    auto [result, mask] = relu_pack(input);
    run.save(output(), Form::kMask, {std::move(mask)});
    run.set(output(), std::move(result));
    return;
  }
  at::Tensor result = activate(kind, input, slope);
  if (run.saves(output(), Form::kMask)) {
    run.save(output(), Form::kMask, {pack_mask(in_layout(gradient_passes(kind, input), layout))});
  }
  if (run.saves(output(), Form::kDerivative)) {
    const at::Tensor derivative = in_layout(smooth_derivative(kind, input, result), layout);
    run.save(output(), Form::kDerivative, pack_copy(derivative, run.saved_format(output()), layout, run.rounding()));
  }
  run.set(output(), std::move(result));
}

void Activation::backward(BackwardRun& run) const {
  at::Tensor grad = run.take_joined(output());
  if (!run.wants(inputs[0])) {
    return;
  }
  if (!is_piecewise(kind)) {
    run.add(inputs[0], run.unpacked_form(output(), Form::kDerivative, grad.scalar_type()).mul_(grad));
    return;
  }
  const at::Tensor& mask = run.saved(output(), Form::kMask)[0];
  const std::vector<c10::SymInt> strides = run.strides(output());
  if (kind == ActivationKind::kLeakyReLU) {
    run.add(inputs[0], at::where(unpack_mask(mask, run.sizes(output()), strides), grad, grad.mul(slope)));
  } else {
    run.add(inputs[0], apply_mask(grad, mask, strides));
  }
}

namespace {
const RegisterStep<Activation> kActivationStep;
}

}  // namespace actnn::blocks
