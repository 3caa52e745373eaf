#include "src/blocks/fusions/dropout_add.h"

#include <c10/util/Exception.h>

#include <utility>

#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/dropout.h"
#include "src/ops/rows.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

std::vector<Need> DropoutAdd::needs(const Wants& wants) const {
  return wants.wants(inputs[0]) ? std::vector<Need>{{output(), Form::kRandomState}} : std::vector<Need>{};
}

std::vector<Sizes> DropoutAdd::infer_sizes(const KnownSizes& known) const {
  return {broadcast(known.sizes(inputs[0]), known.sizes(inputs[1]))};
}

std::vector<at::Tensor> DropoutAdd::compute(Operands& /*operands*/) const {
  TORCH_INTERNAL_ASSERT(false, "a sum is not computed again");
}

void DropoutAdd::forward(ForwardRun& run) const {
  SummedRows sum = add_rows(run.value(inputs[0]), run.value(inputs[1]), probability, run.dtype(output()));
  if (run.saves(output(), Form::kRandomState)) {
    run.save(output(), Form::kRandomState, {std::move(sum.state)});
  }
  run.set(output(), std::move(sum.output));
}

void DropoutAdd::backward(BackwardRun& run) const {
  add_gradients_of_branch(run, run.take_joined(output()), output(),
                          {.x = inputs[0], .residual = inputs[1], .probability = probability});
}

std::optional<Branch> find_dropped_branch(const Window& window, const Add& sum, size_t place) {
  for (const size_t side : {0, 1}) {
    const Value dropped = sum.inputs[side];
    const auto* dropout = window.made_by<Dropout>(dropped);
    if (dropout != nullptr && dropout->probability > 0.0 && dropout->probability < 1.0 &&
        window.sole_reader(dropped) == place && window.have_one_dtype({dropout->inputs[0], dropped})) {
      return Branch{dropout->inputs[0], sum.inputs[1 - side], dropout->probability, window.maker(dropped)};
    }
  }
  return std::nullopt;
}

void add_gradients_of_branch(BackwardRun& run, const at::Tensor& grad, Value sum, const Branch& branch) {
  if (branch.probability == 0.0) {
    add_gradient_of_summand(run, grad, branch.x);
  } else if (run.wants(branch.x)) {
    run.add(branch.x,
            add_rows_backward(sum_to(grad, run.sizes(branch.x)), branch.probability,
                              run.saved(sum, Form::kRandomState)[0], run.dtype(branch.x), run.reads_sums(branch.x)));
  }
  add_gradient_of_summand(run, grad, branch.residual);
}

std::vector<FusedPass> find_dropout_adds(const Window& window) {
  std::vector<FusedPass> passes;
  const std::vector<StepPointer>& steps = window.program.steps;
  for (size_t place = 0; place < steps.size(); ++place) {
    const auto* sum = dynamic_cast<const Add*>(steps[place].get());
    if (sum == nullptr || sum->broadcast || window.layouts[sum->output().number] != Layout::kPlain) {
      continue;
    }
    if (const std::optional<Branch> branch = find_dropped_branch(window, *sum, place)) {
      passes.push_back({std::make_shared<DropoutAdd>(branch->probability, branch->x, branch->residual, sum->output()),
                        {*branch->dropout, place},
                        place});
    }
  }
  return passes;
}

}  // namespace actnn::blocks
