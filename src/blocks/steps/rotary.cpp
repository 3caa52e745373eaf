#include "src/blocks/steps/rotary.h"

#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>

#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/rows.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

enum Place : size_t { kX, kCosines, kSines };

}  // namespace

void Rotary::check() const { check_inputs(*this, 3); }

std::vector<Sizes> Rotary::infer_sizes(const KnownSizes& known) const {
  const Sizes& size = known.sizes(inputs[kX]);
  TORCH_CHECK_VALUE(!size.empty() && size.back() % 2 == 0,
                    "block: rotary must have an input whose last dimension is even, got shape ",
                    c10::SymIntArrayRef(size));
  return {size};
}

std::vector<Need> Rotary::needs(const Wants& wants) const {
  if (!wants.wants(inputs[kX])) {
    return {};
  }
  return needs_to_recompute();
}

std::vector<at::Tensor> Rotary::compute(Operands& operands) const {
  return {rotate(with_dtype(operands.value(inputs[kX]), operands.dtype(output())),
                 operands.saved(inputs[kCosines], Form::kExact)[0], operands.saved(inputs[kSines], Form::kExact)[0],
                 /*back=*/false)};
}

void Rotary::forward(ForwardRun& run) const {
  TORCH_CHECK_VALUE(!run.wants(inputs[kCosines]) && !run.wants(inputs[kSines]),
                    "block: cosines and sines of rotary must be ones that get no gradient");
  for (const size_t place : {kCosines, kSines}) {
    if (run.saves(inputs[place], Form::kExact)) {
      run.save(inputs[place], Form::kExact, {run.value(inputs[place])});
    }
  }
  run.set(output(), rotate(with_dtype(run.value(inputs[kX]), run.dtype(output())), run.value(inputs[kCosines]),
                           run.value(inputs[kSines]), /*back=*/false));
}

void Rotary::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (run.wants(inputs[kX])) {
    run.add(inputs[kX], rotate(grad, run.saved(inputs[kCosines], Form::kExact)[0],
                               run.saved(inputs[kSines], Form::kExact)[0], /*back=*/true));
  }
}

namespace {
const RegisterStep<Rotary> kRotaryStep;
}

}  // namespace actnn::blocks
