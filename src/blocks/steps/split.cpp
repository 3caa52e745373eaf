#include "src/blocks/steps/split.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/select_backward.h>
#include <c10/core/WrapDimMinimal.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/like_value.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

int64_t wrapped(int64_t dimension, const Sizes& size) {
  return c10::maybe_wrap_dim(dimension, static_cast<int64_t>(size.size()));
}

Sizes without_dimension(Sizes size, int64_t dimension) {
  size.erase(size.begin() + wrapped(dimension, size));
  return size;
}

void check_parts(const Step& step, int64_t parts) {
  check_inputs(step, 1);
  TORCH_CHECK_VALUE(parts >= 1, "block: ", step.name(), " must have at least 1 part, got ", parts);
}

/// The gradients of all parts, zeros for those that have none; empty if none has.
std::vector<at::Tensor> take_parts(BackwardRun& run, const std::vector<Value>& outputs) {
  std::vector<at::Tensor> grads;
  grads.reserve(outputs.size());
  for (const Value part : outputs) {
    grads.push_back(run.take_joined(part));
  }
  const auto there = std::find_if(grads.begin(), grads.end(), [](const at::Tensor& grad) { return grad.defined(); });
  if (there == grads.end()) {
    return {};
  }
  const at::Tensor like = *there;
  for (size_t number = 0; number < grads.size(); ++number) {
    if (!grads[number].defined()) {
      grads[number] = empty_like_value(run, outputs[number], like).zero_();
    }
  }
  return grads;
}

}  // namespace

template <class Derived>
std::vector<Sizes> PartsOf<Derived>::infer_sizes(const KnownSizes& known) const {
  const Sizes& input = known.sizes(this->inputs[0]);
  const int64_t along = wrapped(dimension, input);
  std::vector<Sizes> sizes;
  for (const c10::SymInt& extent : static_cast<const Derived&>(*this).part_extents(input.at(along))) {
    sizes.push_back(input);
    sizes.back()[along] = extent;
  }
  return sizes;
}

template <class Derived>
std::vector<at::Tensor> PartsOf<Derived>::compute(Operands& operands) const {
  const at::Tensor input = with_dtype(operands.value(this->inputs[0]), operands.dtype(this->output()));
  return input.split_with_sizes_symint(static_cast<const Derived&>(*this).part_extents(input.sym_size(dimension)),
                                       dimension);
}

template <class Derived>
void PartsOf<Derived>::backward(BackwardRun& run) const {
  const std::vector<at::Tensor> grads = take_parts(run, this->outputs);
  if (!grads.empty() && run.wants(this->inputs[0])) {
    run.add(this->inputs[0], at::cat(grads, dimension));
  }
}

template struct PartsOf<Split>;
template struct PartsOf<Chunk>;

void Split::visit_fields(FieldVisitor& fields) {
  fields.required("sizes", sizes);
  fields.required("dimension", dimension);
}

void Split::check() const { check_parts(*this, static_cast<int64_t>(sizes.size())); }

Sizes Split::part_extents(const c10::SymInt& extent) const {
  const int64_t sum = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  TORCH_CHECK_VALUE(extent == sum, "block: split must have an input of extent ", sum, ", got ", extent);
  return {sizes.begin(), sizes.end()};
}

void Chunk::visit_fields(FieldVisitor& fields) {
  fields.required("chunks", chunks);
  fields.required("dimension", dimension);
}

void Chunk::check() const { check_parts(*this, chunks); }

Sizes Chunk::part_extents(const c10::SymInt& extent) const {
  const c10::SymInt part = (extent + (chunks - 1)) / chunks;
  const c10::SymInt last = extent - part * (chunks - 1);
  // Torch gives fewer chunks where that many are not needed.
  TORCH_CHECK_VALUE(last > 0 || extent == 0, "block: chunk must have an input that makes ", chunks,
                    " chunks, got extent ", extent);
  Sizes extents(chunks, part);
  extents.back() = last;
  return extents;
}

void Unbind::visit_fields(FieldVisitor& fields) {
  fields.required("count", count);
  fields.required("dimension", dimension);
}

void Unbind::check() const { check_parts(*this, count); }

std::vector<Sizes> Unbind::infer_sizes(const KnownSizes& known) const {
  const Sizes& input = known.sizes(inputs[0]);
  const c10::SymInt& extent = input.at(wrapped(dimension, input));
  TORCH_CHECK_VALUE(extent == count, "block: unbind must have an input of extent ", count, ", got ", extent);
  return std::vector<Sizes>(count, without_dimension(input, dimension));
}

std::vector<at::Tensor> Unbind::compute(Operands& operands) const {
  const at::Tensor input = with_dtype(operands.value(inputs[0]), operands.dtype(output()));
  std::vector<at::Tensor> parts;
  for (int64_t part = 0; part < count; ++part) {
    parts.push_back(input.select(dimension, part));
  }
  return parts;
}

void Unbind::backward(BackwardRun& run) const {
  const std::vector<at::Tensor> grads = take_parts(run, outputs);
  if (!grads.empty() && run.wants(inputs[0])) {
    at::Tensor grad = at::empty_strided_symint(run.sizes(inputs[0]), run.strides(inputs[0]), grads[0].options());
    for (int64_t part = 0; part < count; ++part) {
      grad.select(dimension, part).copy_(grads[part]);
    }
    run.add(inputs[0], std::move(grad));
  }
}

void Select::visit_fields(FieldVisitor& fields) {
  fields.required("dimension", dimension);
  fields.required("index", index);
}

void Select::check() const { check_inputs(*this, 1); }

std::vector<Sizes> Select::infer_sizes(const KnownSizes& known) const {
  return {without_dimension(known.sizes(inputs[0]), dimension)};
}

std::vector<at::Tensor> Select::compute(Operands& operands) const {
  return {with_dtype(operands.value(inputs[0]), operands.dtype(output())).select(dimension, index)};
}

void Select::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (run.wants(inputs[0])) {
    run.add(inputs[0], at::select_backward_symint(grad, run.sizes(inputs[0]), dimension, index));
  }
}

namespace {
const RegisterStep<Split> kSplitStep;
const RegisterStep<Chunk> kChunkStep;
const RegisterStep<Unbind> kUnbindStep;
const RegisterStep<Select> kSelectStep;
}  // namespace

}  // namespace actnn::blocks
