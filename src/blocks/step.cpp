#include "src/blocks/step.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "src/blocks/indices.h"
#include "src/blocks/run.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

template <class Source>
c10::SymInt extent_of(const Source& source, const Extent& extent) {
  const auto* integer = std::get_if<IntegerIndex>(&extent);
  return integer != nullptr ? source.integer(*integer) : c10::SymInt(std::get<int64_t>(extent));
}

template <class Source>
Sizes extents_of(const Source& source, const std::vector<Extent>& list) {
  Sizes sizes;
  std::transform(list.begin(), list.end(), std::back_inserter(sizes),
                 [&](const Extent& extent) { return extent_of(source, extent); });
  return sizes;
}

}  // namespace

c10::SymInt Operands::extent(const Extent& extent) const { return extent_of(*this, extent); }
Sizes Operands::extents(const std::vector<Extent>& list) const { return extents_of(*this, list); }
Sizes KnownSizes::extents(const std::vector<Extent>& list) const { return extents_of(*this, list); }

std::vector<ParameterIndex> Step::parameters() const { return indices_of(*this).parameters; }

std::vector<Value> Step::stored_alike() const {
  std::vector<Value> values = inputs;
  values.insert(values.end(), outputs.begin(), outputs.end());
  return values;
}

void Step::forward(ForwardRun& run) const {
  std::vector<at::Tensor> results = compute(run);
  for (size_t number = 0; number < outputs.size(); ++number) {
    run.set(outputs[number], std::move(results[number]));
  }
}

at::Tensor Step::copy_from_saved(BackwardRun& /*run*/, at::ScalarType /*dtype*/) const {
  TORCH_INTERNAL_ASSERT(false, "block: ", name(), " saves nothing that its output's copy could be computed of");
}

const std::vector<at::Tensor>& ForwardRun::saved(Value value, Form /*form*/) const {
  TORCH_INTERNAL_ASSERT(false, "block: forward asked for what it saved of value ", value.number);
}

at::Tensor Operands::value(Value value, at::ScalarType dtype) { return with_dtype(this->value(value), dtype); }

at::Tensor BackwardRun::unpacked_form(Value output, Form form, at::ScalarType wanted) const {
  // Float32 and bfloat16 are packed alike, float16 is not.
  const at::ScalarType packed = dtype(output);
  const bool is_alike = packed != at::kHalf && wanted != at::kHalf;
  return with_dtype(
      unpack_copy(saved(output, form), saved_format(output), sizes(output), layout(output), is_alike ? wanted : packed),
      wanted);
}

at::Tensor BackwardRun::take_joined(Value value) {
  Gradient gradient = take(value);
  gradient.join();
  return gradient.defined() ? in_layout(gradient.first, layout(value)) : gradient.first;
}

}  // namespace actnn::blocks
