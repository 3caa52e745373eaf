#include "src/app/device.h"

#include <ATen/autocast_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <fmt/core.h>

#include <array>

#include "src/app/error.h"

namespace actnn::app {
namespace {

/// What the driver calls a GPU; empty where it does not say. Asked for at run time, because torch tells names only to
/// programs that are compiled with CUDA's headers.
std::string cuda_name(int index) {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) {
    return "";
  }
  const auto initialize = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto get_device = reinterpret_cast<int (*)(int*, int)>(dlsym(driver, "cuDeviceGet"));
  const auto get_name = reinterpret_cast<int (*)(char*, int, int)>(dlsym(driver, "cuDeviceGetName"));
  std::array<char, 256> name{};
  int device = 0;
  const bool named = initialize != nullptr && get_device != nullptr && get_name != nullptr && initialize(0) == 0 &&
                     get_device(&device, index) == 0 &&
                     get_name(name.data(), static_cast<int>(name.size()), device) == 0;
  return named ? name.data() : "";
}

}  // namespace

c10::Device open_device(const std::string& name) {
  const c10::Device device(name);
  if (device.is_cpu()) {
    return device;
  }
  if (!c10::impl::hasDeviceGuardImpl(device.type())) {
    throw RunError(fmt::format("--device {} cannot be used: this actnn was built without CUDA", name));
  }
  if (c10::impl::VirtualGuardImpl(device.type()).deviceCount() == 0) {
    throw RunError(fmt::format(
        "--device {} cannot be used: this machine has no CUDA device, or its driver does not answer", name));
  }
  return {device.type(), 0};
}

std::vector<std::string> available_devices() {
  std::vector<std::string> names{"cpu"};
  if (c10::impl::hasDeviceGuardImpl(c10::kCUDA)) {
    const int count = c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount();
    for (int i = 0; i < count; ++i) {
      const std::string name = cuda_name(i);
      names.push_back(fmt::format("cuda:{}{}", i, name.empty() ? "" : fmt::format(" ({})", name)));
    }
  }
  return names;
}

void synchronize(c10::Device device) {
  if (!device.is_cpu()) {
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
  }
}

int64_t allocator_peak_bytes(c10::Device gpu) {
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return c10::getDeviceAllocator(gpu.type())->getDeviceStats(gpu.index()).allocated_bytes[kAll].peak;
}

void reset_allocator_peak(c10::Device gpu) { c10::getDeviceAllocator(gpu.type())->resetPeakStats(gpu.index()); }

AutocastGuard::AutocastGuard(c10::DeviceType device_type, c10::ScalarType type)
    : device_type_(device_type), active_(type != c10::kFloat) {
  if (active_) {
    at::autocast::set_autocast_dtype(device_type_, type);
    at::autocast::set_autocast_enabled(device_type_, true);
    at::autocast::increment_nesting();
  }
}

AutocastGuard::~AutocastGuard() {
  if (active_) {
    if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
    }
    at::autocast::set_autocast_enabled(device_type_, false);
  }
}

}  // namespace actnn::app
