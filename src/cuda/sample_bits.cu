#include <cub/block/block_scan.cuh>

#include "src/cuda/launch.cuh"
#include "src/cuda/sample_bits.cuh"

namespace actnn::cuda {
namespace {

constexpr int kScanThreads = 1024;

/// One block, 1024 samples at a time.
__global__ void __launch_bounds__(kScanThreads) locate_kernel(SampleBits samples, int64_t elements) {
  using Scan = cub::BlockScan<int64_t, kScanThreads>;
  __shared__ typename Scan::TempStorage storage;
  __shared__ unsigned long long end;
  if (threadIdx.x == 0) {
    end = 0;
  }
  int64_t begun = 0;
  for (int64_t first = 0; first < samples.samples; first += kScanThreads) {
    const int64_t sample = first + threadIdx.x;
    const int bits = sample < samples.samples ? samples.bits[sample] : 0;
    const bool valid = bits >= kMinBits && bits <= kMaxBits;
    const int64_t bytes = valid ? align_up(code_bytes(elements, bits), kSegmentAlignment) : 0;
    int64_t offset = 0;
    int64_t total = 0;
    __syncthreads();
    Scan(storage).ExclusiveSum(bytes, offset, total);
    offset += begun;
    begun += total;
    if (sample < samples.samples) {
      const bool fits = valid && offset + bytes <= samples.room;
      samples.code_offsets[sample] = fits ? offset : kNoCodes;
      if (fits) {
        atomicMax(&end, static_cast<unsigned long long>(offset + bytes));
      }
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    samples.code_offsets[samples.samples] = static_cast<int64_t>(end);
  }
}

}  // namespace

cudaError_t locate_codes(const SampleBits& samples, int64_t elements, cudaStream_t stream) {
  locate_kernel<<<1, kScanThreads, 0, stream>>>(samples, elements);
  return cudaGetLastError();
}

}  // namespace actnn::cuda
