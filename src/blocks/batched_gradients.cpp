#include "src/blocks/batched_gradients.h"

#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/ops/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <iterator>

namespace actnn::blocks {

using at::functorch::isBatchedTensor;

bool are_batched(const std::vector<at::Tensor>& grads) {
  return std::any_of(grads.begin(), grads.end(),
                     [](const at::Tensor& grad) { return grad.defined() && isBatchedTensor(grad); });
}

std::vector<at::Tensor> for_each_of_batch(
    const std::vector<at::Tensor>& grads,
    const std::function<std::vector<at::Tensor>(std::vector<at::Tensor> grads)>& backward) {
  const auto batched = std::find_if(grads.begin(), grads.end(),
                                    [](const at::Tensor& grad) { return grad.defined() && isBatchedTensor(grad); });
  const auto* first = at::functorch::maybeGetBatchedImpl(*batched);
  const int64_t level = first->level();
  const int64_t count = first->value().size(first->bdim());
  std::vector<std::vector<at::Tensor>> results;
  {
    // What is inside of vmap's tensors is plain.
    const c10::impl::ExcludeDispatchKeyGuard plain(c10::DispatchKeySet(
        {c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::FuncTorchDynamicLayerBackMode,
         c10::DispatchKey::FuncTorchVmapMode, c10::DispatchKey::FuncTorchBatched}));
    for (int64_t entry = 0; entry < count; ++entry) {
      std::vector<at::Tensor> of_entry;
      std::transform(grads.begin(), grads.end(), std::back_inserter(of_entry), [&](const at::Tensor& grad) {
        const auto* batch = grad.defined() ? at::functorch::maybeGetBatchedImpl(grad) : nullptr;
        return batch != nullptr ? batch->value().select(batch->bdim(), entry) : grad;
      });
      results.push_back(backward(std::move(of_entry)));
    }
  }
  std::vector<at::Tensor> stacked(results.empty() ? 0 : results.front().size());
  for (size_t place = 0; place < stacked.size(); ++place) {
    if (results.front()[place].defined()) {
      std::vector<at::Tensor> entries;
      std::transform(results.begin(), results.end(), std::back_inserter(entries),
                     [&](const std::vector<at::Tensor>& result) { return result[place]; });
      stacked[place] = at::functorch::makeBatched(at::stack(entries), 0, level);
    }
  }
  return stacked;
}

}  // namespace actnn::blocks
