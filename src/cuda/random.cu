#include "actnn/cuda/random.h"

namespace actnn::cuda {
namespace {

__global__ void advance_kernel(int64_t* state) { ++state[1]; }

}  // namespace

cudaError_t advance_random_state(int64_t* state, cudaStream_t stream) {
  advance_kernel<<<1, 1, 0, stream>>>(state);
  return cudaGetLastError();
}

}  // namespace actnn::cuda
