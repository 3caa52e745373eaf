#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstddef>

#include "actnn/ops/mask.h"
#include "src/ops/tensors.h"

/// \file
/// How functions save a mask of one bit per element for backward.

namespace actnn {

/// Packs a bool tensor and saves its layout in `ctx`. The caller saves the result with `ctx->save_for_backward`.
inline at::Tensor packed_mask(torch::autograd::AutogradContext* ctx, const at::Tensor& mask) {
  const at::Tensor dense = storage_order(mask);
  ctx->saved_data["mask_size"] = dense.sym_sizes().vec();
  ctx->saved_data["mask_stride"] = dense.sym_strides().vec();
  return pack_mask(dense);
}

/// The bool tensor that was packed and saved as variable `index`.
inline at::Tensor saved_mask(torch::autograd::AutogradContext* ctx, size_t index) {
  return unpack_mask(ctx->get_saved_variables()[index], ctx->saved_data["mask_size"].toSymIntVector(),
                     ctx->saved_data["mask_stride"].toSymIntVector());
}

}  // namespace actnn
