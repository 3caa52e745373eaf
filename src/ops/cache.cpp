#include "actnn/ops/cache.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/library.h>

#include "src/ops/stream_capture.h"

namespace actnn {

bool release_cache(c10::Device device, double threshold) {
  TORCH_CHECK_VALUE(threshold >= 0 && threshold <= 1, "actnn::release_cache: threshold must be in 0..1, got ",
                    threshold);
  if (!device.is_cuda() || !at::hasCUDA() || is_capturing(device)) {
    return false;
  }
  auto* const allocator = c10::getDeviceAllocator(device.type());
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto stats = allocator->getDeviceStats(device.index());
  const auto allocated = static_cast<double>(stats.allocated_bytes[kAll].current);
  const auto reserved = static_cast<double>(stats.reserved_bytes[kAll].current);
  if (reserved == 0 || allocated / reserved >= threshold) {
    return false;
  }
  allocator->emptyCache();
  return true;
}

TORCH_LIBRARY_FRAGMENT(actnn, m) { m.def("release_cache(Device device, float threshold) -> bool", release_cache); }

}  // namespace actnn
