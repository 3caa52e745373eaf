#include "src/blocks/steps/reshape.h"

#include <ATen/InferSize.h>
#include <c10/core/WrapDimMinimal.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

template <class Derived>
void ReshapeOf<Derived>::check() const {
  check_inputs(*this, 1);
}

template <class Derived>
std::vector<Sizes> ReshapeOf<Derived>::infer_sizes(const KnownSizes& known) const {
  return {static_cast<const Derived&>(*this).reshaped(known.sizes(this->inputs[0]), known)};
}

template <class Derived>
std::vector<at::Tensor> ReshapeOf<Derived>::compute(Operands& operands) const {
  const at::Tensor input = with_dtype(operands.value(this->inputs[0]), operands.dtype(this->output()));
  return {input.reshape_symint(static_cast<const Derived&>(*this).reshaped(input.sym_sizes().vec(), operands))};
}

template <class Derived>
void ReshapeOf<Derived>::backward(BackwardRun& run) const {
  const Value input = this->inputs[0];
  Gradient gradient = run.take(this->output());
  gradient.join();
  if (run.wants(input)) {
    const bool keeps_sums = have_same_rows(run.sizes(input), run.sizes(this->output()));
    run.add(input, SummedGradient{gradient.first.reshape_symint(run.sizes(input)),
                                  keeps_sums ? std::move(gradient.sums) : at::Tensor()});
  }
}

template <class Source>
Sizes Reshape::reshaped(const Sizes& input, const Source& source) const {
  const auto inferred = at::infer_size_dv(source.extents(sizes), element_count(input));
  return {inferred.begin(), inferred.end()};
}

void Flatten::visit_fields(FieldVisitor& fields) {
  fields.required("start", start);
  fields.required("end", end);
}

template <class Source>
Sizes Flatten::reshaped(const Sizes& input, const Source& /*source*/) const {
  const auto rank = static_cast<int64_t>(input.size());
  const int64_t first = c10::maybe_wrap_dim(start, rank);
  const int64_t last = c10::maybe_wrap_dim(end, rank);
  TORCH_CHECK_VALUE(first <= last, "block: flatten must have a start before its end, got ", start, " and ", end,
                    " of an input of rank ", rank);
  if (rank == 0) {
    return {1};
  }
  Sizes size(input.begin(), input.begin() + first);
  size.push_back(element_count(Sizes(input.begin() + first, input.begin() + last + 1)));
  size.insert(size.end(), input.begin() + last + 1, input.end());
  return size;
}

template <class Source>
Sizes Unsqueeze::reshaped(const Sizes& input, const Source& /*source*/) const {
  Sizes size = input;
  size.insert(size.begin() + c10::maybe_wrap_dim(dimension, static_cast<int64_t>(size.size()) + 1), 1);
  return size;
}

template <class Source>
Sizes Squeeze::reshaped(const Sizes& input, const Source& /*source*/) const {
  Sizes size = input;
  const int64_t removed = c10::maybe_wrap_dim(dimension, static_cast<int64_t>(size.size()));
  if (!size.empty() && size[removed] == 1) {
    size.erase(size.begin() + removed);
  }
  return size;
}

template struct ReshapeOf<Reshape>;
template struct ReshapeOf<Flatten>;
template struct ReshapeOf<Unsqueeze>;
template struct ReshapeOf<Squeeze>;

namespace {
const RegisterStep<Reshape> kReshapeStep;
const RegisterStep<Flatten> kFlattenStep;
const RegisterStep<Unsqueeze> kUnsqueezeStep;
const RegisterStep<Squeeze> kSqueezeStep;
}  // namespace

}  // namespace actnn::blocks
