#include "src/app/device.h"

#include <ATen/autocast_mode.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/core.h>

#include "src/app/error.h"

namespace actnn::app {

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
      names.push_back(fmt::format("cuda:{}", i));
    }
  }
  return names;
}

void synchronize(c10::Device device) {
  if (!device.is_cpu()) {
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
  }
}

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
