#include <c10/cuda/CUDAGraphsC10Utils.h>

#include "src/ops/stream_capture.h"

namespace actnn {

bool is_capturing(c10::Device device) {
  return device.is_cuda() && c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

}  // namespace actnn
