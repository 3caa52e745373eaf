#include "src/blocks/steps/attention_masks.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>

#include <vector>

namespace actnn::blocks {
namespace {

std::optional<at::Tensor> added_to_scores(const AttentionArguments& arguments, double hidden) {
  if (!arguments.mask || arguments.mask->scalar_type() != at::kBool) {
    return arguments.mask;
  }
  const auto options = arguments.query.options();
  return at::where(*arguments.mask, at::scalar_tensor(0.0, options), at::scalar_tensor(hidden, options));
}

/// A mask that repeats, once after the other, as often as there are samples; any other as it is.
at::Tensor repeat(const at::Tensor& mask, const AttentionArguments& arguments) {
  if (!arguments.mask_repeats) {
    return mask;
  }
  std::vector<c10::SymInt> size = mask.sym_sizes().vec();
  size.insert(size.begin(), arguments.query.sym_size(0) / size.front());
  return mask.expand_symint(size).flatten(0, 1);
}

}  // namespace

std::optional<at::Tensor> repeated_mask(const AttentionArguments& arguments) {
  return arguments.mask ? std::optional(repeat(*arguments.mask, arguments)) : std::nullopt;
}

std::optional<at::Tensor> additive_mask(const AttentionArguments& arguments, double hidden) {
  const std::optional<at::Tensor> mask = added_to_scores(arguments, hidden);
  return mask ? std::optional(repeat(*mask, arguments)) : std::nullopt;
}

std::optional<at::Tensor> aligned_mask(const AttentionArguments& arguments) {
  constexpr int64_t kAlignment = 16;
  const std::optional<at::Tensor> mask = added_to_scores(arguments, -kInfinity);
  if (!mask) {
    return mask;
  }
  const c10::SymInt length = arguments.key.sym_size(2);
  std::vector<c10::SymInt> row = mask->sym_sizes().vec();
  row.back() = length;
  at::Tensor result = mask->expand_symint(row);
  // What repeats is copied without what lies between its rows.
  bool is_aligned = result.sym_stride(-1) == 1 && !(arguments.mask_repeats && length % kAlignment != 0);
  for (int64_t dimension = 0; dimension + 1 < result.dim(); ++dimension) {
    is_aligned = is_aligned && result.sym_stride(dimension) % kAlignment == 0;
  }
  if (!is_aligned) {
    const c10::SymInt padding = (kAlignment - length % kAlignment) % kAlignment;
    result = at::constant_pad_nd_symint(result.contiguous(), {0, padding}, 0);
  }
  result = repeat(result, arguments).slice_symint(-1, 0, length);
  const at::Tensor& query = arguments.query;
  return result.expand_symint({query.sym_size(0), query.sym_size(1), query.sym_size(2), length});
}

at::Tensor sum_repeated(const at::Tensor& grad, const AttentionArguments& arguments) {
  const c10::SymInt samples = arguments.mask->sym_size(0);
  std::vector<c10::SymInt> size = grad.sym_sizes().vec();
  size.front() = size.front() / samples;
  size.insert(size.begin() + 1, samples);
  return grad.reshape_symint(size).sum(0);
}

}  // namespace actnn::blocks
