#include "src/blocks/fusions/add_norm.h"

#include <c10/util/Exception.h>

#include <set>
#include <utility>

#include "src/blocks/run.h"
#include "src/blocks/steps/layer_norm.h"
#include "src/blocks/steps/rms_norm.h"
#include "src/ops/rows.h"

namespace actnn::blocks {

std::vector<ParameterIndex> AddNorm::parameters() const {
  std::vector<ParameterIndex> found;
  for (const std::optional<ParameterIndex>& parameter : {weight, bias}) {
    if (parameter) {
      found.push_back(*parameter);
    }
  }
  return found;
}

std::vector<Sizes> AddNorm::infer_sizes(const KnownSizes& known) const {
  return {known.sizes(inputs[0]), known.sizes(inputs[0])};
}

std::vector<Need> AddNorm::needs(const Wants& wants) const {
  std::vector<Need> needs = norm_operands().needs(output(), wants);
  if (probability > 0.0 && wants.wants(inputs[0])) {
    needs.push_back({sum(), Form::kRandomState});
  }
  return needs;
}

at::Tensor AddNorm::copy_from_saved(BackwardRun& run, at::ScalarType dtype) const {
  return copy_from_normalized(run, output(), norm_operands(), dtype);
}

std::vector<at::Tensor> AddNorm::compute(Operands& /*operands*/) const {
  TORCH_INTERNAL_ASSERT(false, "a sum is not computed again, and a norm is from what it saves");
}

void AddNorm::forward(ForwardRun& run) const {
  NormalizedRows rows = row_norm_forward(run, output(), statistics, norm_operands(), run.value(inputs[0]),
                                         RowAddition{run.value(inputs[1]), probability, run.dtype(sum()), keeps_sum});
  if (run.saves(sum(), Form::kRandomState)) {
    run.save(sum(), Form::kRandomState, {std::move(rows.state)});
  }
  if (keeps_sum) {
    run.set(sum(), std::move(rows.sum));
  }
}

std::optional<RowBranch> AddNorm::branch_of(const BackwardRun& run) const {
  const Value branch = inputs[0];
  const bool wants_sums = run.reads_sums(branch);
  const bool is_of_sum = probability == 0.0 && run.dtype(branch) == run.dtype(sum()) && !wants_sums;
  if (!run.wants(branch) || is_of_sum) {
    return std::nullopt;
  }
  return RowBranch{.probability = probability,
                   .state = probability > 0.0 ? run.saved(sum(), Form::kRandomState)[0] : at::Tensor(),
                   .dtype = run.dtype(branch),
                   .wants_sums = wants_sums};
}

void AddNorm::backward(BackwardRun& run) const {
  Gradient of_output = run.take(output());
  SummedGradient of_branch;
  if (of_output.defined()) {
    of_branch = row_norm_backward(run, output(), statistics, norm_operands(), std::move(of_output), branch_of(run));
  }
  const at::Tensor grad = run.take_joined(sum());
  if (of_branch.grad.defined()) {
    run.add(inputs[0], std::move(of_branch));
    add_gradient_of_summand(run, grad, inputs[1]);
  } else if (grad.defined()) {
    add_gradients_of_branch(run, grad, sum(), {.x = inputs[0], .residual = inputs[1], .probability = probability});
  }
}

namespace {

struct NormOfRows {
  RowStatistics statistics;
  NormOperands operands;
};

std::optional<NormOfRows> as_norm_of_rows(const Step& step) {
  if (const auto* layer = dynamic_cast<const LayerNorm*>(&step)) {
    return NormOfRows{layer->statistics(), layer->norm_operands()};
  }
  if (const auto* rms = dynamic_cast<const RmsNorm*>(&step)) {
    return NormOfRows{rms->statistics(), rms->norm_operands()};
  }
  return std::nullopt;
}

}  // namespace

std::vector<FusedPass> find_add_norms(const Window& window) {
  std::vector<FusedPass> passes;
  std::set<Value> sums;  // that a norm has, the first of those that read it
  const std::vector<StepPointer>& steps = window.program.steps;
  for (size_t place = 0; place < steps.size(); ++place) {
    const std::optional<NormOfRows> norm = as_norm_of_rows(*steps[place]);
    const Add* sum = norm ? window.made_by<Add>(norm->operands.input) : nullptr;
    if (sum == nullptr || sum->broadcast || window.layouts[sum->output().number] != Layout::kPlain ||
        !sums.insert(sum->output()).second) {
      continue;
    }
    const size_t of_sum = *window.maker(sum->output());
    const Branch branch =
        find_dropped_branch(window, *sum, of_sum).value_or(Branch{.x = sum->inputs[0], .residual = sum->inputs[1]});
    std::vector<size_t> computed{of_sum, place};
    if (branch.dropout) {
      computed.insert(computed.begin(), *branch.dropout);
    }
    passes.push_back({std::make_shared<AddNorm>(branch, norm->statistics, norm->operands, steps[place]->output(),
                                                window.sole_reader(sum->output()) != place),
                      std::move(computed), of_sum});
  }
  return passes;
}

}  // namespace actnn::blocks
