#pragma once

#include <c10/core/Device.h>

namespace actnn {

/// Whether the current stream of a CUDA device is being captured into a graph.
bool is_capturing(c10::Device device);

}  // namespace actnn
