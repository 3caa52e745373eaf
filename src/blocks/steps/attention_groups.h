#pragma once

#include <ATen/core/Tensor.h>

/// \file
/// Heads of key and value that several heads of the query share. Tensors are [..., heads, length, head size].

namespace actnn::blocks {

/// A key or value with a head for each of the query's.
at::Tensor expand_groups(const at::Tensor& tensor, const at::Tensor& query);

/// The other way for its gradient: the sum over the query's heads of each head of `like`.
at::Tensor sum_groups(const at::Tensor& grad, const at::Tensor& like);

}  // namespace actnn::blocks
