#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

namespace actnn {

/// A *random state* is an int64 tensor {seed, offset} on the device of the operation that uses it. An operation draws
/// its noise from (seed, offset) and then advances the offset by one, in place; so it replays from a copy of the state,
/// and a captured CUDA graph draws fresh noise at every replay.

/// A state with the given seed and offset 0.
at::Tensor make_rng_state(int64_t seed, c10::Device device = c10::kCPU);

/// A fresh state, seed and offset drawn from torch's default generator of the device: it follows `torch::manual_seed`,
/// as torch's own random operations do.
at::Tensor default_rng_state(c10::Device device);

}  // namespace actnn
