#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

/// \file
/// The two steps by which a layer's bits follow its gradients, as one op each: a layer of an adaptive scheme costs
/// three more small kernels. Nothing waits for the device. Not differentiable.

namespace actnn {

/// Bits for the samples of a batch: the greedy answer of `allocate_bits` from `initial_bits` each to `total_bits` in
/// all, for the sensitivities range x factor x gradient. `range`: float32 [N]; `gradient`: float32 scalar on the same
/// device, which counts as 1 without one and while it is 0. Returns (sensitivity: float32 [N], bits: uint8 [N]).
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes, shapes or devices; bits outside 1..8.
std::tuple<at::Tensor, at::Tensor> allocate_sample_bits(const at::Tensor& range,
                                                        const std::optional<at::Tensor>& gradient, double factor,
                                                        int64_t initial_bits, int64_t total_bits);

/// Updates `gradient`, a layer's running squared norm per sample (float32 scalar, 0 before the first), by the mean of
/// `norms` (float32 [N], same device): the first one as it is, then half old and half new; a mean that is not finite
/// changes nothing. Returns the result as a new tensor, with 1 for 0.
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes, shapes or devices.
at::Tensor update_gradient_norm_(at::Tensor& gradient, const at::Tensor& norms);

}  // namespace actnn
