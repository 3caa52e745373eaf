#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "actnn/blocks/plan.h"
#include "src/autograd/shared_copy.h"

/// \file
/// What forward keeps for backward.

namespace actnn::blocks {

/// Sizes, strides and dtype of a tensor that is not there.
struct TensorShape {
  std::vector<int64_t> size;
  std::vector<int64_t> stride;
  at::ScalarType dtype = at::kFloat;

  explicit TensorShape(const at::Tensor& tensor)
      : size(tensor.sizes().vec()), stride(tensor.strides().vec()), dtype(tensor.scalar_type()) {}
};

/// An unbiased copy of a value: sign-split, of a pass or of whoever made the tensor, or packed by itself.
struct KeptCopy {
  std::optional<SharedCopy> split;
  at::Tensor packed;  ///< as `quantize`, without a split copy
  int64_t bits = 0;
  TensorShape shape;
};

/// Of a pass of normalization, addition, activation; undefined where not needed.
struct KeptPass {
  at::Tensor packed;
  at::Tensor normalized;  ///< copies of the normalized input, with the sides in `packed`
  at::Tensor inverse;     ///< from copies (or the input) to the norm's output
  at::Tensor deviation;   ///< 1 / deviation of the norm
  at::Tensor channels;    ///< of the input, if that is computed again or only sides count
  bool batch_statistics = false;
  at::Tensor rows;  ///< float64 [1]: of all ranks, if their batches together were the batch
};

/// Of an activation or of pooling.
struct KeptBytes {
  at::Tensor bytes;
  TensorShape shape;
};

struct Kept {
  std::map<Value, KeptCopy> copies;     ///< by value
  std::map<Value, KeptPass> passes;     ///< by output
  std::map<Value, KeptBytes> bytes;     ///< by output
  std::map<Value, TensorShape> shapes;  ///< of inputs of convolutions
  std::vector<bool> wants_gradient;     ///< of values
};

}  // namespace actnn::blocks
