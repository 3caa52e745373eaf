#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>

#include "src/blocks/steps/attention_kernels.h"

/// \file
/// The mask of attention as its kernels take it.

namespace actnn::blocks {

/// A score of minus infinity is hidden.
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// As it is, for all samples.
std::optional<at::Tensor> repeated_mask(const AttentionArguments& arguments);

/// One that is added to scores. `hidden` is what a boolean one stands for where it is false.
std::optional<at::Tensor> additive_mask(const AttentionArguments& arguments, double hidden);

/// One that is added, in four dimensions, with rows that start at multiples of 16 elements, as the memory-efficient
/// kernel reads them.
std::optional<at::Tensor> aligned_mask(const AttentionArguments& arguments);

/// The other way for the gradient of a mask that repeats.
at::Tensor sum_repeated(const at::Tensor& grad, const AttentionArguments& arguments);

}  // namespace actnn::blocks
