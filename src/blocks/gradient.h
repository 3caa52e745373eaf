#pragma once

#include <ATen/core/Tensor.h>

namespace actnn::blocks {

/// Whether nobody else sees the memory of `tensor`, and no two of its elements share some: it may be written to.
bool is_owned(const at::Tensor& tensor);

/// The gradient of a value: up to two parts, which are added where they are read.
struct Gradient {
  at::Tensor first;
  at::Tensor second;

  bool defined() const { return first.defined(); }
  void add(at::Tensor part);
  /// Both parts in `first`.
  void join();
};

}  // namespace actnn::blocks
