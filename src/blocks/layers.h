#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

#include "actnn/blocks/program.h"
#include "src/blocks/kept.h"

/// \file
/// What forward and backward both do.

namespace actnn::blocks {

/// `tensor` itself if it has the dtype: below autograd, `Tensor::to` is not asked then.
inline at::Tensor with_dtype(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

at::Tensor convolve(const Convolution& convolution, const at::Tensor& input, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias);

/// Gradients of input, weight, bias, those that are wanted.
std::array<at::Tensor, 3> convolution_gradients(const Convolution& convolution, const at::Tensor& grad,
                                                const at::Tensor& input, const at::Tensor& weight,
                                                std::array<bool, 3> wanted);

/// The unbiased copy.
at::Tensor decode(const KeptCopy& copy);

}  // namespace actnn::blocks
