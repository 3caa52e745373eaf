#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace actnn::blocks {

/// Whether gradients are batches of gradients, as `torch.autograd.grad(..., is_grads_batched=True)` gives them: vmap's
/// tensors.
bool are_batched(const std::vector<at::Tensor>& grads);

/// Calls `backward` for each gradient of the batch, and makes batches of the results. Undefined tensors stay undefined.
std::vector<at::Tensor> for_each_of_batch(
    const std::vector<at::Tensor>& grads,
    const std::function<std::vector<at::Tensor>(std::vector<at::Tensor> grads)>& backward);

}  // namespace actnn::blocks
