#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace actnn::app {

/// The device named "cpu" or "cuda"; a RunError that says what is missing where it cannot be used.
c10::Device open_device(const std::string& name);

/// All devices that can be used, e.g. {"cpu", "cuda:0 (NVIDIA H100 80GB HBM3)"}.
std::vector<std::string> available_devices();

/// Waits until all work on the device is done; for timing.
void synchronize(c10::Device device);

/// The most bytes that torch's allocator had handed out on a GPU at a time since the last `reset_allocator_peak`: what
/// torch.cuda.max_memory_allocated says.
int64_t allocator_peak_bytes(c10::Device gpu);
void reset_allocator_peak(c10::Device gpu);

/// Runs floating operations of the device type in `type` while it lives, as torch.autocast does; kFloat: changes
/// nothing.
class AutocastGuard {
 public:
  AutocastGuard(c10::DeviceType device_type, c10::ScalarType type);
  ~AutocastGuard();
  AutocastGuard(const AutocastGuard&) = delete;
  AutocastGuard& operator=(const AutocastGuard&) = delete;

 private:
  c10::DeviceType device_type_;
  bool active_;
};

}  // namespace actnn::app
