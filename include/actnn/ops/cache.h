#pragma once

#include <c10/core/Device.h>

namespace actnn {

/// Gives the memory that the device's allocator holds and does not use back to the device, if allocated / reserved
/// bytes are less than `threshold`; returns whether it did. Nothing on other devices than CUDA's, or while a CUDA graph
/// is captured. Waits for the device if it does something.
bool release_cache(c10::Device device, double threshold);

}  // namespace actnn
