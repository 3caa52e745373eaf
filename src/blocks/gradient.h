#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace actnn::blocks {

/// Whether nobody else sees the memory of `tensor`, and no two of its elements share some: it may be written to.
bool is_owned(const at::Tensor& tensor);

/// The gradient of a value: up to two parts, which are added where they are read.
struct Gradient {
  at::Tensor first;
  at::Tensor second;
  at::Tensor sums;  ///< over all dimensions but the last, of a gradient in one part whose maker had them anyway

  bool defined() const { return first.defined(); }
  void add(at::Tensor part, at::Tensor sums_of_part = {});
  /// Both parts in `first`.
  void join();
  /// Takes a part of this dtype out that nobody else sees, if there is one.
  std::optional<at::Tensor> take_owned(at::ScalarType dtype);
};

}  // namespace actnn::blocks
