#include "actnn/ops/dropout.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "actnn/core/layout.h"
#include "actnn/cpu/dropout.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/dropout_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

constexpr const char* kForward = "actnn::dropout_forward";
constexpr const char* kForwardInPlace = "actnn::dropout_forward_";
constexpr const char* kApply = "actnn::apply_dropout";

ElementType check_dropout(const char* op, const at::Tensor& input, double probability,
                          const std::optional<at::Tensor>& rng_state) {
  const ElementType type = check_floating(op, "input", input);
  TORCH_CHECK_VALUE(probability >= 0.0 && probability <= 1.0, op, ": probability must be in [0, 1], got ", probability);
  check_rng_state(op, rng_state, input.device());
  return type;
}

}  // namespace

ElementType check_dropout_forward(const at::Tensor& input, double probability,
                                  const std::optional<at::Tensor>& rng_state) {
  return check_dropout(kForward, input, probability, rng_state);
}

ElementType check_dropout_forward_in_place(const at::Tensor& input, double probability,
                                           const std::optional<at::Tensor>& rng_state) {
  const ElementType type = check_dropout(kForwardInPlace, input, probability, rng_state);
  TORCH_CHECK_VALUE(input.is_non_overlapping_and_dense(), kForwardInPlace,
                    ": input must be dense (no gaps, no overlaps), got size ", input.sym_sizes(), " and stride ",
                    input.sym_strides());
  return type;
}

ElementType check_apply_dropout(const at::Tensor& input, double probability, const at::Tensor& state,
                                c10::SymIntArrayRef stride) {
  const ElementType type = check_dropout(kApply, input, probability, state);
  check_dense(kApply, input.sym_sizes(), stride);
  return type;
}

at::Tensor empty_rng_state(const at::Tensor& input) {
  return at::empty({2}, input.options().dtype(at::kLong).memory_format(at::MemoryFormat::Contiguous));
}

namespace {

at::Tensor state_tensor(const RandomState& state, const at::Tensor& input) {
  at::Tensor tensor = empty_rng_state(input);
  auto* words = tensor.mutable_data_ptr<int64_t>();
  words[0] = static_cast<int64_t>(state.seed);
  words[1] = static_cast<int64_t>(state.offset);
  return tensor;
}

void dropout_into(const at::Tensor& input, const at::Tensor& output, ElementType type, double probability,
                  const RandomState& random) {
  const cpu::DropoutArguments arguments{.input = input.const_data_ptr(),
                                        .type = type,
                                        .count = input.numel(),
                                        .probability = probability,
                                        .random = random,
                                        .output = output.mutable_data_ptr()};
  at::parallel_for(0, ceil_div(input.numel(), kDropoutQuad), parallel_grain(kDropoutQuad),
                   [&](int64_t first, int64_t last) { cpu::dropout(arguments, first, last); });
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(const at::Tensor& input, double probability,
                                               const std::optional<at::Tensor>& rng_state) {
  const ElementType type = check_dropout_forward(input, probability, rng_state);
  const at::Tensor dense = storage_order(input);
  at::Tensor output = at::empty_like(dense);
  const RandomState random = take_random_state(rng_state);
  dropout_into(dense, output, type, probability, random);
  return {output, state_tensor(random, input)};
}

std::tuple<at::Tensor, at::Tensor> forward_meta(const at::Tensor& input, double probability,
                                                const std::optional<at::Tensor>& rng_state) {
  check_dropout_forward(input, probability, rng_state);
  return {at::empty_like(storage_order(input)), empty_rng_state(input)};
}

at::Tensor forward_in_place_cpu(const at::Tensor& input, double probability,
                                const std::optional<at::Tensor>& rng_state) {
  const ElementType type = check_dropout_forward_in_place(input, probability, rng_state);
  const RandomState random = take_random_state(rng_state);
  dropout_into(input, input, type, probability, random);
  return state_tensor(random, input);
}

at::Tensor forward_in_place_meta(const at::Tensor& input, double probability,
                                 const std::optional<at::Tensor>& rng_state) {
  check_dropout_forward_in_place(input, probability, rng_state);
  return empty_rng_state(input);
}

at::Tensor apply_cpu(const at::Tensor& input, double probability, const at::Tensor& state, c10::IntArrayRef stride) {
  const auto symbolic_stride = c10::fromIntArrayRefSlow(stride);
  const ElementType type = check_apply_dropout(input, probability, state, symbolic_stride);
  const at::Tensor source = with_strides(input, symbolic_stride);
  at::Tensor output = at::empty_strided(input.sizes(), stride, input.options());
  dropout_into(source, output, type, probability, read_random_state(state));
  return output;
}

at::Tensor apply_meta(const at::Tensor& input, double probability, const at::Tensor& state,
                      c10::SymIntArrayRef stride) {
  check_apply_dropout(input, probability, state, stride);
  return at::empty_strided_symint(input.sym_sizes(), stride, input.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  const std::vector<at::Tag> random{at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded};
  m.def("dropout_forward(Tensor input, float probability, Tensor(a!)? rng_state=None) -> (Tensor output, Tensor state)",
        random);
  m.def("dropout_forward_(Tensor(a!) input, float probability, Tensor(b!)? rng_state=None) -> Tensor", random);
  m.def("apply_dropout(Tensor input, float probability, Tensor state, SymInt[] stride) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("dropout_forward", forward_cpu);
  m.impl("dropout_forward_", forward_in_place_cpu);
  m.impl("apply_dropout", apply_cpu);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("dropout_forward", forward_meta);
  m.impl("dropout_forward_", forward_in_place_meta);
  m.impl("apply_dropout", apply_meta);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("dropout_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("dropout_forward_", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  m.impl("dropout_forward", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
  m.impl("dropout_forward_", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

std::tuple<at::Tensor, at::Tensor> dropout_forward(const at::Tensor& input, double probability,
                                                   const std::optional<at::Tensor>& rng_state) {
  static const auto kOp =
      find_op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, double, const std::optional<at::Tensor>&)>(
          kForward);
  return kOp.call(input, probability, rng_state);
}

at::Tensor dropout_forward_(at::Tensor& input, double probability, const std::optional<at::Tensor>& rng_state) {
  static const auto kOp =
      find_op<at::Tensor(const at::Tensor&, double, const std::optional<at::Tensor>&)>(kForwardInPlace);
  return kOp.call(input, probability, rng_state);
}

at::Tensor apply_dropout(const at::Tensor& input, double probability, const at::Tensor& state,
                         c10::SymIntArrayRef stride) {
  static const auto kOp =
      find_op<at::Tensor(const at::Tensor&, double, const at::Tensor&, c10::SymIntArrayRef)>(kApply);
  return kOp.call(input, probability, state, stride);
}

}  // namespace actnn
