#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

namespace actnn::app {

/// The device named "cpu" or "cuda"; a RunError that says what is missing where it cannot be used.
c10::Device open_device(const std::string& name);

/// All devices that can be used, e.g. {"cpu", "cuda:0"}.
std::vector<std::string> available_devices();

/// Waits until all work on the device is done; for timing.
void synchronize(c10::Device device);

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
