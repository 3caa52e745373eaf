#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include "actnn/autograd/pooling.h"

/// \file
/// Average pools over 2 or 3 dimensions and their gradients, below autograd. Lists have one entry a dimension.
/// Of the `input` that gradients take, only shape and layout are read: an uninitialized tensor serves.

namespace actnn {

at::Tensor exact_avg_pool(const at::Tensor& input, const AvgPoolGeometry& geometry);
at::Tensor avg_pool_gradient(const at::Tensor& grad, const at::Tensor& input, const AvgPoolGeometry& geometry);

at::Tensor exact_adaptive_avg_pool(const at::Tensor& input, c10::IntArrayRef output_size);
/// Whether all is pooled to one element. Torch takes a mean then, whose gradient is `grad`, divided and expanded: the
/// function below would need the input's memory beside it.
bool is_global_pool(c10::IntArrayRef output_size);
at::Tensor adaptive_avg_pool_gradient(const at::Tensor& grad, const at::Tensor& input, size_t dimensions);

}  // namespace actnn
