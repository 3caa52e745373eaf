#include "src/blocks/batched_gradients.h"

#include <ATen/LegacyBatchedTensorImpl.h>
#include <ATen/ops/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace actnn::blocks {
namespace {

bool is_batch(const at::Tensor& grad) { return grad.defined() && at::isBatchedTensor(grad); }

}  // namespace

bool are_batched(const std::vector<at::Tensor>& grads) { return std::any_of(grads.begin(), grads.end(), is_batch); }

std::vector<at::Tensor> for_each_of_batch(
    const std::vector<at::Tensor>& grads,
    const std::function<std::vector<at::Tensor>(std::vector<at::Tensor> grads)>& backward) {
  const at::Tensor& batched = *std::find_if(grads.begin(), grads.end(), is_batch);
  const at::BatchDim dimension = at::maybeGetBatchedImpl(batched)->bdims().front();
  const int64_t count = at::maybeGetBatchedImpl(batched)->value().size(dimension.dim());
  std::vector<std::vector<at::Tensor>> results;
  {
    // What is inside of vmap's tensors is plain.
    const c10::impl::ExcludeDispatchKeyGuard plain(
        c10::DispatchKeySet({c10::DispatchKey::VmapMode, c10::DispatchKey::Batched}));
    for (int64_t entry = 0; entry < count; ++entry) {
      std::vector<at::Tensor> of_entry;
      std::transform(grads.begin(), grads.end(), std::back_inserter(of_entry), [&](const at::Tensor& grad) {
        const auto* batch = is_batch(grad) ? at::maybeGetBatchedImpl(grad) : nullptr;
        return batch != nullptr ? batch->value().select(batch->bdims().front().dim(), entry) : grad;
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
      stacked[place] = at::addBatchDim(at::stack(entries), dimension.level(), 0);
    }
  }
  return stacked;
}

}  // namespace actnn::blocks
