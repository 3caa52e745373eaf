#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

/// \file
/// Device memory moved to the host until backward. Copies run on two streams of their own, one for each direction,
/// beside the computation; the buffers are pinned and come from torch's pool of pinned memory, which reuses them from
/// step to step.

namespace actnn {

/// A pinned CPU copy of `tensor` that is being made: only `fetch` knows when it is complete. `tensor` may be freed at
/// once. A tensor that is already in host memory is returned as it is.
at::Tensor offload(const at::Tensor& tensor);

/// The tensor on `device` from what `offload` returned; any number of times. Also starts to fetch the tensor that was
/// offloaded before this one on the device, which backward wants next. Does not wait for the device.
at::Tensor fetch(const at::Tensor& stored, c10::Device device);

}  // namespace actnn
