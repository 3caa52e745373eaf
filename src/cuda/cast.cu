#include <algorithm>
#include <type_traits>

#include "actnn/cuda/cast.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/vector.cuh"

namespace actnn::cuda {
namespace {

/// Arrays of a launch: their description has to fit into a kernel's arguments, 4 KiB.
constexpr int kMostArrays = 96;
/// Elements of a thread at once, and how often; of a block. Neighbouring threads have neighbouring ones, so that whole
/// lines of memory are read and written.
constexpr int kQuad = 4;
constexpr int kQuads = 4;
constexpr int kBlockElements = kBlockThreads * kQuad * kQuads;

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

/// Four elements, as they are in memory.
template <class Element>
using QuadWords = std::conditional_t<sizeof(Element) == sizeof(float), uint4, uint2>;

template <class Element>
__device__ float4 to_floats(const QuadWords<Element>& words) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    return make_float4(float_of(words.x), float_of(words.y), float_of(words.z), float_of(words.w));
  } else {
    const float2 first = Pair<Element>::to_floats(words.x);
    const float2 second = Pair<Element>::to_floats(words.y);
    return make_float4(first.x, first.y, second.x, second.y);
  }
}

template <class Element>
__device__ QuadWords<Element> rounded(const float4& x) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    return make_uint4(bits_of(x.x), bits_of(x.y), bits_of(x.z), bits_of(x.w));
  } else {
    return make_uint2(Pair<Element>::round(x.x, x.y), Pair<Element>::round(x.z, x.w));
  }
}

template <class From, class To>
__global__ void __launch_bounds__(kBlockThreads) cast_kernel(const Casts casts) {
  wait_for_kernels_before();
  const int number = casts.array_of(blockIdx.x);
  const Cast& cast = casts.arrays[number];
  const int64_t begin = int64_t{blockIdx.x - casts.first_block[number]} * kBlockElements;
  const auto* const from = static_cast<const From*>(cast.from) + begin;
  auto* const to = static_cast<To*>(cast.to) + begin;
  const auto places = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (begin + kBlockElements > cast.count || places % sizeof(Vector) != 0) {
    const auto count = static_cast<int>(min(cast.count - begin, int64_t{kBlockElements}));
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kBlockThreads) {
      const float value = to_float(from[i]);
      if constexpr (sizeof(To) == sizeof(float)) {
        to[i] = value;
      } else {
        to[i] = {static_cast<uint16_t>(Pair<To>::round(value, 0.0F))};
      }
    }
    return;
  }
  QuadWords<From> quads[kQuads];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    quads[q] = __ldcs(reinterpret_cast<const QuadWords<From>*>(from) + q * kBlockThreads + threadIdx.x);
  }
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    reinterpret_cast<QuadWords<To>*>(to)[q * kBlockThreads + threadIdx.x] = rounded<To>(to_floats<From>(quads[q]));
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
