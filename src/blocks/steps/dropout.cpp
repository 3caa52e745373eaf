#include "src/blocks/steps/dropout.h"

#include <c10/util/Exception.h>

#include <utility>

#include "actnn/ops/dropout.h"
#include "src/blocks/copy_format.h"
#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void Dropout::check() const {
  check_inputs(*this, 1);
  TORCH_CHECK_VALUE(probability >= 0.0 && probability <= 1.0, "block: dropout must have a probability in [0, 1], got ",
                    probability);
}

std::vector<Need> Dropout::needs(const Wants& wants) const {
  if (!wants.wants(inputs[0])) {
    return {};
  }
  return {{output(), Form::kRandomState}};
}

std::vector<at::Tensor> Dropout::compute(Operands& operands) const {
  // The mask follows the order of memory, which is the output's in forward, wherever the copy comes from.
  const at::Tensor input =
      in_layout(with_dtype(operands.value(inputs[0]), operands.dtype(output())), operands.layout(output()));
  return {apply_dropout(input, probability, operands.saved(output(), Form::kRandomState)[0],
                        strides_of(input.sym_sizes(), operands.layout(output())))};
}

void Dropout::forward(ForwardRun& run) const {
  const at::Tensor input = with_dtype(run.value(inputs[0]), run.dtype(output()));
  auto [result, state] = dropout_forward(in_layout(input, run.layout(output())), probability);
  if (run.saves(output(), Form::kRandomState)) {
    run.save(output(), Form::kRandomState, {std::move(state)});
  }
  run.set(output(), std::move(result));
}

void Dropout::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (run.wants(inputs[0])) {
    run.add(inputs[0],
            apply_dropout(grad, probability, run.saved(output(), Form::kRandomState)[0], run.strides(output())));
  }
}

namespace {
const RegisterStep<Dropout> kDropoutStep;
}

}  // namespace actnn::blocks
