#pragma once

#include <c10/core/Device.h>

namespace actnn {

/// Returns the memory that the device's allocator holds unused to the device if allocated / reserved bytes are less
/// than `threshold`; says whether it did. Does nothing on devices other than CUDA's, or while a CUDA graph is captured.
/// Waits for the device if it does something.
bool release_cache(c10::Device device, double threshold);

}  // namespace actnn
