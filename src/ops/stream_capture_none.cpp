/// Of a build without CUDA.

#include "src/ops/stream_capture.h"

namespace actnn {

bool is_capturing(c10::Device /*device*/) { return false; }

}  // namespace actnn
