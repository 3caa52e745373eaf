#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/options/conv.h>

namespace actnn::nn {

/// `at::pad` in the given mode, with the same result and gradient, saving shapes only. (Torch's reflecting and
/// replicating pads save their whole input, of which their backward reads the shape.) `amounts`: before and after, last
/// dimension first.
at::Tensor pad(const at::Tensor& input, at::IntArrayRef amounts, const torch::nn::detail::conv_padding_mode_t& mode);

}  // namespace actnn::nn
