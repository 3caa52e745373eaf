#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>

namespace actnn {

/// For an op's autocast kernel: while it lives, autocast is off for the ops called, and `cast` gives tensors in the
/// type that autocast computes the op in.
class AutocastTo {
 public:
  AutocastTo(c10::DeviceType device, at::ScalarType dtype) : device_(device), dtype_(dtype) {}

  at::Tensor cast(const at::Tensor& tensor) const { return at::autocast::cached_cast(dtype_, tensor, device_); }
  std::optional<at::Tensor> cast(const std::optional<at::Tensor>& tensor) const {
    return tensor.has_value() ? std::optional<at::Tensor>(cast(*tensor)) : std::nullopt;
  }

 private:
  c10::DeviceType device_;
  at::ScalarType dtype_;
  c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
};

/// As torch's matrix products and convolutions take their tensors.
class LowerPrecision : public AutocastTo {
 public:
  explicit LowerPrecision(c10::DeviceType device) : AutocastTo(device, at::autocast::get_autocast_dtype(device)) {}
};

/// As torch's reductions and normalizations take them on CUDA: float32.
class FullPrecision : public AutocastTo {
 public:
  explicit FullPrecision(c10::DeviceType device) : AutocastTo(device, at::kFloat) {}
};

}  // namespace actnn
