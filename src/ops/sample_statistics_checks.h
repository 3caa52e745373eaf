#pragma once

#include <ATen/core/Tensor.h>

#include "actnn/core/scalar_types.h"

namespace actnn {

ElementType check_group_range_squares(const at::Tensor& input, int64_t group_size);
ElementType check_square_norms(const at::Tensor& input);

/// A new float32 tensor with one entry per sample.
at::Tensor one_per_sample(const at::Tensor& input);

}  // namespace actnn
