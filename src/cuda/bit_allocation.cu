#include "actnn/core/bit_allocation.h"
#include "actnn/core/bit_packing.h"
#include "actnn/cuda/bit_allocation.h"
#include "src/cuda/launch.cuh"

namespace actnn::cuda {
namespace {

/// Lanes of a sample: one for each decrement, 8 to 7 bits the first.
constexpr int kSampleLanes = 8;
/// Few, so that a batch of usual size keeps many multiprocessors busy.
constexpr int kAllocationThreads = 64;

__device__ float sensitivity_of(const SampleSensitivities& samples, int64_t sample) {
  return sample_sensitivity(samples.range[sample], samples.factor, samples.gradient ? *samples.gradient : 0.0F);
}

__global__ void __launch_bounds__(kAllocationThreads)
    allocate_kernel(SampleSensitivities samples, int initial, int64_t excess, float* sensitivity, uint8_t* bits) {
  __shared__ double tile[kAllocationThreads];
  const int64_t own = thread_index() / kSampleLanes;
  const int lane = lane_index() % kSampleLanes;
  const int own_from = initial - lane;
  const bool is_decrement = own < samples.samples && own_from > kMinBits;
  const double price =
      is_decrement ? rise_of_variance(counted_sensitivity(sensitivity_of(samples, own)), own_from) : 0.0;

  int64_t before = 0;
  for (int64_t first = 0; excess > 0 && first < samples.samples; first += kAllocationThreads) {
    if (first + threadIdx.x < samples.samples) {
      tile[threadIdx.x] = counted_sensitivity(sensitivity_of(samples, first + threadIdx.x));
    }
    __syncthreads();
    const int count = static_cast<int>(min(int64_t{kAllocationThreads}, samples.samples - first));
    for (int i = 0; i < count; ++i) {
      const int64_t other = first + i;
#pragma unroll
      for (int from = kMaxBits; from > kMinBits; --from) {
        const double other_price = rise_of_variance(tile[i], from);
        const bool comes_first = other < own || (other == own && from > own_from);
        before += from <= initial && (other_price < price || (other_price == price && comes_first));
      }
    }
    __syncthreads();
  }

  const unsigned taken = __ballot_sync(~0u, is_decrement && before < excess);
  if (own < samples.samples && lane == 0) {
    const unsigned of_sample = taken >> (lane_index() / kSampleLanes * kSampleLanes) & 0xFFu;
    bits[own] = static_cast<uint8_t>(initial - __popc(of_sample));
    sensitivity[own] = sensitivity_of(samples, own);
  }
}

/// One warp. The order of addition is fixed.
__global__ void update_kernel(const float* norms, int64_t samples, float* gradient, float* known) {
  double sum = 0.0;
  for (int64_t sample = lane_index(); sample < samples; sample += kWarp) {
    sum += norms[sample];
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(~0u, sum, distance);
  }
  if (lane_index() == 0) {
    const float updated = updated_gradient_norm(*gradient, static_cast<float>(sum / static_cast<double>(samples)));
    *gradient = updated;
    *known = updated > 0.0F ? updated : 1.0F;
  }
}

}  // namespace

cudaError_t allocate_sample_bits(const SampleSensitivities& samples, int initial, int64_t excess, float* sensitivity,
                                 uint8_t* bits, cudaStream_t stream) {
  if (samples.samples == 0) {
    return cudaSuccess;
  }
  allocate_kernel<<<blocks_for(samples.samples * kSampleLanes, kAllocationThreads), kAllocationThreads, 0, stream>>>(
      samples, initial, excess, sensitivity, bits);
  return cudaGetLastError();
}

cudaError_t update_gradient_norm(const float* norms, int64_t samples, float* gradient, float* known,
                                 cudaStream_t stream) {
  update_kernel<<<1, kWarp, 0, stream>>>(norms, samples, gradient, known);
  return cudaGetLastError();
}

}  // namespace actnn::cuda
