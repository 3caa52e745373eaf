#include "src/ops/shared_copy.h"

#include <ATen/SavedTensorHooks.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/library.h>

#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "actnn/ops/norm_act.h"
#include "src/ops/channel_matrix.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using WeakTensor = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

WeakTensor weak(const at::Tensor& tensor) { return WeakTensor(tensor.getIntrusivePtr()); }

/// Whether hooks may keep something else in place of the copies that are saved.
bool are_hooked() { return !at::SavedTensorDefaultHooks::get_tls_state().stack.empty(); }

/// What is known of a tensor and its copy. Keeps neither alive, unless hooks are there: a checkpoint's drop the copy in
/// forward and not when they compute again, but those behind must save the same both times.
struct Entry {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  int64_t offset;
  std::vector<int64_t> size;
  std::vector<int64_t> stride;
  int64_t version;
  at::ScalarType dtype;
  std::vector<WeakTensor> tensors;
  std::vector<at::Tensor> kept;  ///< the same, under hooks
  SharedCopy copy;               ///< without tensors
};

std::vector<at::Tensor*> tensors_of(SharedCopy& copy) {
  if (auto* pass = std::get_if<PassCopy>(&copy)) {
    return {&pass->packed, &pass->decode};
  }
  return {&std::get<InputCopy>(copy).packed};
}

class SharedCopies {
 public:
  void add(const at::Tensor& tensor, SharedCopy copy) {
    std::vector<WeakTensor> tensors;
    std::vector<at::Tensor> kept;
    for (at::Tensor* part : tensors_of(copy)) {
      tensors.push_back(weak(*part));
      if (are_hooked()) {
        kept.push_back(*part);
      }
      part->reset();
    }
    const auto* key = tensor.storage().unsafeGetStorageImpl();
    std::vector<Entry> dead;
    const std::lock_guard lock(mutex_);
    take_the_dead(dead, key);
    entries_.insert_or_assign(key, Entry{.storage = tensor.storage().getWeakStorageImpl(),
                                         .offset = tensor.storage_offset(),
                                         .size = tensor.sizes().vec(),
                                         .stride = tensor.strides().vec(),
                                         .version = tensor._version(),
                                         .dtype = tensor.scalar_type(),
                                         .tensors = std::move(tensors),
                                         .kept = std::move(kept),
                                         .copy = std::move(copy)});
  }

  std::optional<SharedCopy> find(const at::Tensor& tensor) {
    std::vector<Entry> dead;
    const std::lock_guard lock(mutex_);
    take_the_dead(dead);
    const auto found = entries_.find(tensor.storage().unsafeGetStorageImpl());
    if (found == entries_.end()) {
      return std::nullopt;
    }
    const Entry& entry = found->second;
    if (entry.offset != tensor.storage_offset() || tensor.sizes() != entry.size || tensor.strides() != entry.stride ||
        tensor._version() != entry.version || tensor.scalar_type() != entry.dtype) {
      return std::nullopt;
    }
    SharedCopy copy = entry.copy;
    size_t place = 0;
    for (at::Tensor* part : tensors_of(copy)) {
      auto alive = entry.tensors[place++].lock();
      if (!alive.defined()) {
        return std::nullopt;
      }
      *part = at::Tensor(std::move(alive));
    }
    return copy;
  }

 private:
  /// Entries of storages that are gone, so that another one at the same address is not taken for one of them, and that
  /// of `replaced`. The caller frees what they keep when it does not hold the lock any more: a tensor that Python knows
  /// waits for Python's.
  void take_the_dead(std::vector<Entry>& dead, const c10::StorageImpl* replaced = nullptr) {
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      if (entry->first == replaced || entry->second.storage.expired()) {
        dead.push_back(std::move(entry->second));
        entry = entries_.erase(entry);
      } else {
        ++entry;
      }
    }
  }

  std::mutex mutex_;
  std::unordered_map<const c10::StorageImpl*, Entry> entries_;
};

SharedCopies& shared_copies() {
  // Never destroyed: at the end of a process torch cannot free the tensors that are kept.
  static SharedCopies& copies = *new SharedCopies;
  return copies;
}

bool can_be_known(const at::Tensor& tensor) {
  return !is_traced(tensor) && tensor.has_storage() && !tensor.is_inference() && tensor.numel() > 0;
}

/// The tensors of `tensor`'s copy, for those who count bytes; none without a copy.
std::vector<at::Tensor> tensors_of_copy(const at::Tensor& tensor) {
  std::optional<SharedCopy> copy = find_copy(tensor);
  std::vector<at::Tensor> tensors;
  if (copy) {
    for (const at::Tensor* part : tensors_of(*copy)) {
      tensors.push_back(*part);
    }
  }
  return tensors;
}

}  // namespace

at::Tensor PassCopy::decoded(c10::SymIntArrayRef size, at::ScalarType dtype) const {
  c10::SymInt rows = 1;
  for (size_t dimension = 0; dimension < size.size(); ++dimension) {
    rows = dimension == 1 ? rows : rows * size[dimension];
  }
  return from_matrix(norm_act_output(packed, decode, rows, dtype, activation, bits), size);
}

void share_copy(const at::Tensor& tensor, const SharedCopy& copy) {
  if (can_be_known(tensor)) {
    shared_copies().add(tensor, copy);
  }
}

std::optional<SharedCopy> find_copy(const at::Tensor& tensor) {
  return can_be_known(tensor) ? shared_copies().find(tensor) : std::nullopt;
}

std::optional<PassCopy> find_pass_copy(const at::Tensor& tensor) {
  const std::optional<SharedCopy> copy = find_copy(tensor);
  const auto* pass = copy ? std::get_if<PassCopy>(&*copy) : nullptr;
  return pass != nullptr ? std::optional(*pass) : std::nullopt;
}

TORCH_LIBRARY_FRAGMENT(actnn, m) { m.def("shared_copy(Tensor tensor) -> Tensor[]", tensors_of_copy); }

}  // namespace actnn
