#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

/// \file
/// Casts of a model's parameters, and of their gradients.

namespace actnn {

/// Copies each tensor of `from` into the one of `to`, which has its sizes and strides and another dtype. On a GPU few
/// kernels, which fill it, do it for all.
void copy_together(const std::vector<at::Tensor>& to, const std::vector<at::Tensor>& from);

/// Replaces each tensor that has another dtype than `dtypes` says by a copy that has it, in the same layout.
void cast_together(const std::vector<at::Tensor*>& tensors, const std::vector<at::ScalarType>& dtypes);

}  // namespace actnn
