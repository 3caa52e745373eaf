#pragma once

#include <ATen/core/Tensor.h>

/// \file
/// Sums over each sample from which bits per sample are chosen (Chen et al., "ActNN", ICML 2021, section 4). The first
/// dimension counts samples. float32 results of shape [N] on the input's device, accumulated in double precision in a
/// fixed order: equal inputs give equal bits on one kind of device; between CPU and CUDA the last bits may differ. No
/// host synchronization. Not differentiable.
///
/// Errors (c10::ValueError, c10::TypeError): dtypes other than float32, float16, bfloat16; no dimension; group_size not
/// a positive multiple of 32.

namespace actnn {

/// Per sample the sum over its groups (those of `quantize_per_sample`) of (largest - smallest)^2. NaN if an element is
/// NaN.
at::Tensor group_range_squares(const at::Tensor& input, int64_t group_size);

/// Per sample the sum of squares of its elements.
at::Tensor square_norms(const at::Tensor& input);

}  // namespace actnn
