#include <algorithm>

#include "actnn/cuda/cast.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/vector.cuh"

namespace actnn::cuda {
namespace {

/// Arrays of a launch: their description has to fit into a kernel's arguments, 4 KiB.
constexpr int kMostArrays = 96;
/// Elements of a thread, and of a block: few, so that a small array fills many multiprocessors.
constexpr int kThreadElements = 8;
constexpr int kBlockElements = kBlockThreads * kThreadElements;

struct Casts {
  Cast arrays[kMostArrays];
  uint32_t first_block[kMostArrays + 1] = {};
  int count = 0;

  void add(const Cast& cast) {
    arrays[count] = cast;
    first_block[count + 1] = first_block[count] + blocks_for(cast.count, kBlockElements);
    ++count;
  }
  unsigned blocks() const { return first_block[count]; }

  /// The array that a block has elements of.
  __device__ int array_of(uint32_t block) const {
    int low = 0;
    int high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_block[middle] <= block) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};
static_assert(sizeof(Casts) <= 4000);

template <class Element>
__device__ float2 pair_at(const uint32_t (&words)[kThreadElements], int pair) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    return make_float2(float_of(words[2 * pair]), float_of(words[2 * pair + 1]));
  } else {
    return Pair<Element>::to_floats(words[pair]);
  }
}

template <class From, class To>
__global__ void __launch_bounds__(kBlockThreads) cast_kernel(const Casts casts) {
  wait_for_kernels_before();
  const int number = casts.array_of(blockIdx.x);
  const Cast& cast = casts.arrays[number];
  const int64_t first =
      int64_t{blockIdx.x - casts.first_block[number]} * kBlockElements + threadIdx.x * kThreadElements;
  const auto* const from = static_cast<const From*>(cast.from) + first;
  auto* const to = static_cast<To*>(cast.to) + first;
  const auto places = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (first + kThreadElements > cast.count || places % sizeof(Vector) != 0) {
    for (int i = 0; i < kThreadElements && first + i < cast.count; ++i) {
      const float value = to_float(from[i]);
      if constexpr (sizeof(To) == sizeof(float)) {
        to[i] = value;
      } else {
        to[i] = {static_cast<uint16_t>(Pair<To>::round(value, 0.0F))};
      }
    }
    return;
  }
  uint32_t words[kThreadElements];
#pragma unroll
  for (int v = 0; v < kThreadElements / kVectorElements<From>; ++v) {
    const Vector vector = load_streaming(from + v * kVectorElements<From>);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      words[4 * v + w] = vector.word[w];
    }
  }
  uint32_t results[kThreadElements];
#pragma unroll
  for (int pair = 0; pair < kThreadElements / 2; ++pair) {
    const float2 values = pair_at<From>(words, pair);
    if constexpr (sizeof(To) == sizeof(float)) {
      results[2 * pair] = bits_of(values.x);
      results[2 * pair + 1] = bits_of(values.y);
    } else {
      results[pair] = Pair<To>::round(values.x, values.y);
    }
  }
#pragma unroll
  for (int v = 0; v < kThreadElements / kVectorElements<To>; ++v) {
    store(to + v * kVectorElements<To>, {{results[4 * v], results[4 * v + 1], results[4 * v + 2], results[4 * v + 3]}});
  }
}

}  // namespace

cudaError_t cast_arrays(std::span<const Cast> casts, ElementType from, ElementType to, cudaStream_t stream) {
  for (size_t first = 0; first < casts.size(); first += kMostArrays) {
    Casts some;
    for (const Cast& cast : casts.subspan(first, std::min(casts.size() - first, size_t{kMostArrays}))) {
      some.add(cast);
    }
    if (some.blocks() == 0) {
      continue;
    }
    cudaError_t error = cudaSuccess;
    with_element_type(from, [&]<class From>(From /*tag*/) {
      with_element_type(to, [&]<class To>(To /*tag*/) {
        error = launch_kernel(cast_kernel<From, To>, some.blocks(), kBlockThreads, 0, stream, some);
      });
    });
    if (error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace actnn::cuda
