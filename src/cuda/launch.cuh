#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <utility>

#include "actnn/core/layout.h"
#include "actnn/core/scalar_types.h"

/// \file
/// What the kernels share: sizes of blocks, turning run-time values into template arguments, division by invariants.

namespace actnn::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kBlockThreads = 256;
inline constexpr int kBlockWarps = kBlockThreads / kWarp;

/// Blocks for so many items.
inline unsigned blocks_for(int64_t items, int64_t items_per_block) {
  return static_cast<unsigned>(ceil_div(items, items_per_block));
}

/// Multiprocessors of the current device.
inline int multiprocessors() {
  int device = 0;
  int count = 1;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  }
  return count;
}

/// Number of this thread in the grid.
__device__ inline int64_t thread_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

/// Number of this thread's warp in a grid of blocks of `kBlockThreads`. 32 bits count the warps of any tensor and take
/// half the instructions.
__device__ inline int64_t warp_index() { return int64_t{blockIdx.x * kBlockWarps + threadIdx.x / kWarp}; }

/// Number of this thread in its warp.
__device__ inline int lane_index() { return static_cast<int>(threadIdx.x % kWarp); }

/// The ElementType of a C++ element type.
template <class Element>
inline constexpr ElementType kTypeOf = ElementType::kFloat32;
template <>
inline constexpr ElementType kTypeOf<Float16> = ElementType::kFloat16;
template <>
inline constexpr ElementType kTypeOf<BFloat16> = ElementType::kBFloat16;

/// Calls `body.operator()<bits>()`, bits in 1..8.
template <class Body>
constexpr void with_bits(int bits, Body&& body) {
  switch (bits) {
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    case 3:
      return body.template operator()<3>();
    case 4:
      return body.template operator()<4>();
    case 5:
      return body.template operator()<5>();
    case 6:
      return body.template operator()<6>();
    case 7:
      return body.template operator()<7>();
    case 8:
      return body.template operator()<8>();
    default:
      return;
  }
}

/// Calls `body.operator()<kFlags..., flags...>()`.
template <bool... kFlags, class Body>
constexpr void with_flags(Body&& body) {
  body.template operator()<kFlags...>();
}
template <bool... kFlags, class Body, class... Flags>
constexpr void with_flags(Body&& body, bool flag, Flags... flags) {
  flag ? with_flags<kFlags..., true>(body, flags...) : with_flags<kFlags..., false>(body, flags...);
}

/// Bytes of dynamic shared memory that a block can have on the current device, beside the static memory of a kernel.
inline int most_shared_memory() {
  constexpr int kStatic = 6 * 1024;
  int device = 0;
  int bytes = 48 * 1024;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  return bytes - kStatic;
}

/// Allows the kernel so many bytes of dynamic shared memory: more than 48 KiB must be asked for.
template <class Kernel>
cudaError_t allow_shared_memory(Kernel kernel, int bytes) {
  constexpr int kFree = 24 * 1024;  // beside static memory
  return bytes <= kFree ? cudaSuccess
                        : cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

/// Whether kernels of this library may be started on the current device before those in front of them have ended. All
/// are compiled for the same architectures, and `wait_for_kernels_before` waits where that is compute capability 9 or
/// later. `kernel`: any of them; it is asked once for a device.
inline bool may_start_early(const void* kernel) {
  enum Answer : int8_t { kUnknown, kNo, kYes };
  constexpr int kFirstVersion = 90;
  static std::array<std::atomic<int8_t>, 64> answers{};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= static_cast<int>(answers.size())) {
    return false;
  }
  std::atomic<int8_t>& answer = answers[static_cast<size_t>(device)];
  if (answer == kUnknown) {
    // What the code on the device was made of: for a newer device it may be that of an older one.
    cudaFuncAttributes of{};
    if (cudaFuncGetAttributes(&of, kernel) != cudaSuccess) {
      cudaGetLastError();  // the launch will have its own
      return false;
    }
    answer = of.ptxVersion >= kFirstVersion ? kYes : kNo;
  }
  return answer == kYes;
}

/// Launches a kernel that begins with `wait_for_kernels_before()`. Where that can be, its blocks are started while
/// the last blocks of the kernel in front of it are at work, if that one lets them (CUDA C++ Programming Guide,
/// programmatic dependent launch); in CUDA graphs too.
template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, int shared_bytes,
                          cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = may_start_early(reinterpret_cast<const void*>(kernel)) ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  return error == cudaSuccess ? error : cudaGetLastError();  // which the device forgets then
}

/// Waits until all kernels in front of this one have ended and what they wrote can be read; only then may the kernel
/// behind it start. Every thread calls it before it touches global memory.
__device__ inline void wait_for_kernels_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/// Division of 32-bit numbers by a number known at launch: a shift or a multiplication.
class Divider {
 public:
  explicit Divider(uint32_t divisor) {
    while (uint64_t{1} << shift_ < divisor) {
      ++shift_;
    }
    if (uint64_t{1} << shift_ != divisor) {
      shift_ = -1;
      reciprocal_ = (uint64_t{1} << 63) / divisor + 1;
    }
  }

  /// Exact: the reciprocal is too large by less than 1, and n * divisor is below 2^63 for divisors below 2^31.
  __device__ uint32_t operator()(uint32_t n) const { return shift_ >= 0 ? shifted(n) : multiplied(n); }

  /// Calls body(divide), where divide(n) divides: which of the two ways is then asked once for many numbers.
  template <class Body>
  __device__ void with_way(Body&& body) const {
    if (shift_ >= 0) {
      body([this](uint32_t n) { return shifted(n); });
    } else {
      body([this](uint32_t n) { return multiplied(n); });
    }
  }

 private:
  __device__ uint32_t shifted(uint32_t n) const { return n >> shift_; }
  __device__ uint32_t multiplied(uint32_t n) const {
    return static_cast<uint32_t>(__umul64hi(uint64_t{n} << 1, reciprocal_));
  }

  int shift_ = 0;
  uint64_t reciprocal_ = 0;
};

}  // namespace actnn::cuda
