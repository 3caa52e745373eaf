#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <tuple>

#include "actnn/autograd/pooling.h"

/// \file
/// 3-D max-pooling and its gradient, for what is below autograd. Lists have one entry a dimension.

namespace actnn {

/// (output, indices), as torch gives them.
std::tuple<at::Tensor, at::Tensor> exact_max_pool3d(const at::Tensor& input, const MaxPoolGeometry& geometry);

/// The position of each maximum inside its window, of the smallest integer type that serves; `size` is the input's.
at::Tensor max_pool3d_positions(const at::Tensor& indices, c10::SymIntArrayRef size, const MaxPoolGeometry& geometry);

/// The gradient of the input. Of `input` only shape and layout are read.
at::Tensor max_pool3d_gradient(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& positions,
                               const MaxPoolGeometry& geometry);

}  // namespace actnn
