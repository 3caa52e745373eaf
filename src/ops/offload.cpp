#include "actnn/ops/offload.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <list>
#include <map>
#include <mutex>

namespace actnn {
namespace {

/// The bytes of a storage as a tensor.
at::Tensor bytes_of(const c10::Storage& storage) {
  return at::empty({0}, at::TensorOptions().dtype(at::kByte).device(storage.device()))
      .set_(storage, 0, {static_cast<int64_t>(storage.nbytes())}, {1});
}

/// A tensor on its way to the host, there, or on its way back.
struct Offloaded {
  c10::weak_intrusive_ptr<c10::StorageImpl> host;  ///< owned by the graph, and gone with it
  c10::Event arrived;                              ///< on the host
  at::Tensor returned;                             ///< its bytes on the device, ahead of need
  c10::Event ready;                                ///< `returned` is complete
};

/// What was offloaded from one device, in the order of forward.
class OffloadedTensors {
 public:
  explicit OffloadedTensors(c10::Device device)
      : device_(device),
        backend_(device.type()),
        outward_(backend_.getStreamFromGlobalPool(device)),
        homeward_(backend_.getStreamFromGlobalPool(device)) {}

  at::Tensor put(const at::Tensor& tensor) {
    const std::lock_guard lock(mutex_);
    entries_.remove_if([](const Offloaded& entry) { return entry.host.expired(); });
    at::Tensor host = at::empty_like(tensor, tensor.options().device(at::kCPU).pinned_memory(true));
    Offloaded& entry = entries_.emplace_back(
        Offloaded{host.storage().getWeakStorageImpl(), c10::Event(device_.type()), {}, c10::Event(device_.type())});
    c10::Event computed(device_.type());
    computed.record(backend_.getStream(device_));
    computed.block(outward_);
    const c10::StreamGuard guard(outward_);
    host.copy_(tensor, /*non_blocking=*/true);
    tensor.record_stream(outward_);
    entry.arrived.record(outward_);
    return host;
  }

  at::Tensor take(const at::Tensor& host) {
    const std::lock_guard lock(mutex_);
    const auto entry = std::find_if(entries_.rbegin(), entries_.rend(), [&](const Offloaded& candidate) {
      return candidate.host._unsafe_get_target() == host.storage().unsafeGetStorageImpl();
    });
    TORCH_CHECK_VALUE(entry != entries_.rend(), "actnn::fetch: stored must be what actnn::offload returned for device ",
                      device_, ", got ", host.toString());
    bring_back(*entry, host.storage());
    const c10::Stream current = backend_.getStream(device_);
    entry->ready.block(current);
    const at::Tensor bytes = std::exchange(entry->returned, at::Tensor());
    bytes.record_stream(current);
    const auto before = std::find_if(std::next(entry), entries_.rend(),
                                     [](const Offloaded& candidate) { return !candidate.host.expired(); });
    if (before != entries_.rend()) {
      if (auto storage = before->host.lock()) {
        bring_back(*before, c10::Storage(std::move(storage)));
      }
    }
    return at::empty({0}, host.options().device(device_).pinned_memory(false))
        .set_(bytes.storage(), 0, host.sizes(), host.strides());
  }

 private:
  void bring_back(Offloaded& entry, const c10::Storage& host) {
    if (entry.returned.defined()) {
      return;
    }
    entry.arrived.block(homeward_);
    const c10::StreamGuard guard(homeward_);
    const at::Tensor bytes = bytes_of(host);
    entry.returned = at::empty_like(bytes, bytes.options().device(device_).pinned_memory(false));
    entry.returned.copy_(bytes, /*non_blocking=*/true);
    entry.ready.record(homeward_);
  }

  c10::Device device_;
  c10::impl::VirtualGuardImpl backend_;
  c10::Stream outward_;
  c10::Stream homeward_;
  std::mutex mutex_;
  std::list<Offloaded> entries_;
};

OffloadedTensors& offloaded_from(c10::Device device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, OffloadedTensors> devices;
  const std::lock_guard lock(mutex);
  return devices.try_emplace(device.index(), device).first->second;
}

}  // namespace

at::Tensor offload(const at::Tensor& tensor) {
  return tensor.device().is_cpu() ? tensor : offloaded_from(tensor.device()).put(tensor);
}

at::Tensor fetch(const at::Tensor& stored, c10::Device device) {
  return device.is_cpu() ? stored : offloaded_from(device).take(stored);
}

}  // namespace actnn
