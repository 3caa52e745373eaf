#pragma once

#include <ATen/core/Tensor.h>

namespace actnn {

/// `at::relu` for float32, float16 and bfloat16, saving one bit per element for backward. Result and gradient are
/// exact, and so is double backward.
at::Tensor relu(const at::Tensor& input);

/// The same in place.
at::Tensor& relu_(at::Tensor& input);

}  // namespace actnn
