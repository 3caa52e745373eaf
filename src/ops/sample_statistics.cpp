#include "actnn/ops/sample_statistics.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "actnn/cpu/sample_statistics.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/sample_statistics_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

constexpr const char* kRanges = "actnn::group_range_squares";
constexpr const char* kSquares = "actnn::square_norms";

ElementType check_samples(const char* op, const at::Tensor& input) {
  const ElementType type = check_floating(op, "input", input);
  TORCH_CHECK_VALUE(input.dim() >= 1, op, ": input must have a sample dimension, got a 0-D tensor");
  return type;
}

}  // namespace

ElementType check_group_range_squares(const at::Tensor& input, int64_t group_size) {
  check_group_size(kRanges, group_size);
  return check_samples(kRanges, input);
}

ElementType check_square_norms(const at::Tensor& input) { return check_samples(kSquares, input); }

at::Tensor one_per_sample(const at::Tensor& input) {
  return at::empty_symint({input.sym_size(0)}, input.options().dtype(at::kFloat));
}

namespace {

/// Fills a float per sample with `of_sample(its elements, their number)`.
template <class OfSample>
at::Tensor for_samples(const at::Tensor& input, ElementType type, OfSample&& of_sample) {
  const at::Tensor dense = samples_outermost(input);
  at::Tensor result = one_per_sample(input);
  const int64_t samples = dense.size(0);
  const int64_t elements = samples == 0 ? 0 : dense.numel() / samples;
  const auto* source = static_cast<const uint8_t*>(dense.const_data_ptr());
  auto* sums = result.mutable_data_ptr<float>();
  at::parallel_for(0, samples, parallel_grain(elements), [&](int64_t first, int64_t last) {
    for (int64_t sample = first; sample < last; ++sample) {
      sums[sample] = of_sample(source + sample * elements * element_size(type), elements);
    }
  });
  return result;
}

at::Tensor ranges_cpu(const at::Tensor& input, int64_t group_size) {
  const ElementType type = check_group_range_squares(input, group_size);
  return for_samples(input, type, [&](const void* elements, int64_t count) {
    return cpu::group_range_square_sum(elements, type, count, group_size);
  });
}

at::Tensor squares_cpu(const at::Tensor& input) {
  const ElementType type = check_square_norms(input);
  return for_samples(input, type,
                     [&](const void* elements, int64_t count) { return cpu::square_norm(elements, type, count); });
}

// Statistics have no gradient.
at::Tensor ranges_autograd(const at::Tensor& input, int64_t group_size) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return group_range_squares(input, group_size);
}

at::Tensor squares_autograd(const at::Tensor& input) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return square_norms(input);
}

at::Tensor ranges_meta(const at::Tensor& input, int64_t group_size) {
  check_group_range_squares(input, group_size);
  return one_per_sample(input);
}

at::Tensor squares_meta(const at::Tensor& input) {
  check_square_norms(input);
  return one_per_sample(input);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def("group_range_squares(Tensor input, int group_size) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("square_norms(Tensor input) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("group_range_squares", ranges_cpu);
  m.impl("square_norms", squares_cpu);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("group_range_squares", ranges_meta);
  m.impl("square_norms", squares_meta);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("group_range_squares", ranges_autograd);
  m.impl("square_norms", squares_autograd);
}

at::Tensor group_range_squares(const at::Tensor& input, int64_t group_size) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, int64_t)>(kRanges);
  return kOp.call(input, group_size);
}

at::Tensor square_norms(const at::Tensor& input) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&)>(kSquares);
  return kOp.call(input);
}

}  // namespace actnn
