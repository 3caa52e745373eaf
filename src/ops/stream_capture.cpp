#include "src/ops/stream_capture.h"

#ifdef ACTNN_WITH_CUDA
#include <c10/cuda/CUDAGraphsC10Utils.h>
#endif

namespace actnn {

bool is_capturing([[maybe_unused]] c10::Device device) {
#ifdef ACTNN_WITH_CUDA
  return device.is_cuda() && c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
#else
  return false;
#endif
}

}  // namespace actnn
