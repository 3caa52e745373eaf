#include <algorithm>

#include "actnn/cuda/cross_entropy.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/vector.cuh"

namespace actnn::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr float kLowest = -3.0e38F;  // below all logits that count; its exponential is 0

/// The largest of numbers, the sum of exponentials of what they are more than it, and their sum.
struct LogSum {
  float largest = kLowest;
  float exponentials = 0.0F;
  float sum = 0.0F;

  __device__ void join(const LogSum& other) {
    const float above = fmaxf(largest, other.largest);
    exponentials = __fmaf_rn(exponentials, __expf(largest - above), other.exponentials * __expf(other.largest - above));
    largest = above;
    sum += other.sum;
  }
  __device__ LogSum of_lane(int distance) const {
    return {__shfl_xor_sync(~0U, largest, distance), __shfl_xor_sync(~0U, exponentials, distance),
            __shfl_xor_sync(~0U, sum, distance)};
  }
};

template <class Element>
__device__ void to_floats(const Vector& v, float (&x)[kVectorElements<Element>]) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      x[w] = float_of(v.word[w]);
    } else {
      const float2 pair = Pair<Element>::to_floats(v.word[w]);
      x[2 * w] = pair.x;
      x[2 * w + 1] = pair.y;
    }
  }
}

template <class Element>
__device__ Vector to_vector(const float (&x)[kVectorElements<Element>]) {
  Vector v;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      v.word[w] = bits_of(x[w]);
    } else {
      v.word[w] = Pair<Element>::round(x[2 * w], x[2 * w + 1]);
    }
  }
  return v;
}

/// A row, whose vectors begin somewhere behind its first element.
template <class Element>
struct LogitRow {
  Element* first;
  int64_t classes;
  int64_t head;  ///< elements in front of the first whole vector
  int64_t vectors;

  __device__ LogitRow(Element* own_first, int64_t own_classes) : first(own_first), classes(own_classes) {
    const auto behind = static_cast<int64_t>(reinterpret_cast<uintptr_t>(first) / sizeof(Element) %
                                             static_cast<uintptr_t>(kVectorElements<Element>));
    head = min((kVectorElements<Element> - behind) % kVectorElements<Element>, classes);
    vectors = (classes - head) / kVectorElements<Element>;
  }

  /// Calls `of_vector(vector, its first class)` and `of_element(element, its class)` for all, by the threads of a
  /// block.
  template <class OfVector, class OfElement>
  __device__ void visit(OfVector&& of_vector, OfElement&& of_element) const {
#pragma unroll 2
    for (int64_t v = threadIdx.x; v < vectors; v += kThreads) {
      const int64_t at = head + v * kVectorElements<Element>;
      of_vector(first + at, at);
    }
    const int64_t behind = head + vectors * kVectorElements<Element>;
    const int64_t rest = head + classes - behind;
    if (threadIdx.x < rest) {
      const int64_t at = threadIdx.x < head ? threadIdx.x : behind + threadIdx.x - head;
      of_element(first + at, at);
    }
  }
};

/// Calls `store(i, load(i))` for all i below a count, by the threads of a block: what several loads have is stored when
/// all are under way.
template <class Load, class Store>
__device__ void copy_each(int64_t count, Load&& load, Store&& store) {
  constexpr int kAtOnce = 8;
  for (int64_t first = threadIdx.x; first < count; first += kAtOnce * kThreads) {
    decltype(load(first)) values[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int64_t i = first + n * kThreads;
      values[n] = i < count ? load(i) : 0;
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int64_t i = first + n * kThreads;
      if (i < count) {
        store(i, values[n]);
      }
    }
  }
}

/// Copies elements to any place, by the threads of a block: two of 16 bits at a time, from where those of the copy
/// begin at a multiple of 4 bytes.
template <class Element>
__device__ void copy_row(const Element* from, int64_t count, Element* to) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    copy_each(
        count, [&](int64_t i) { return from[i]; }, [&](int64_t i, float value) { to[i] = value; });
  } else {
    const auto* const source = reinterpret_cast<const uint16_t*>(from);
    auto* const target = reinterpret_cast<uint16_t*>(to);
    const int head = reinterpret_cast<uintptr_t>(to) % sizeof(uint32_t) == 0 ? 0 : 1;
    const int64_t pairs = (count - head) / 2;
    const auto store_pair = [&](int64_t i, uint32_t pair) { reinterpret_cast<uint32_t*>(target + head)[i] = pair; };
    if (reinterpret_cast<uintptr_t>(from + head) % sizeof(uint32_t) == 0) {
      copy_each(
          pairs, [&](int64_t i) { return reinterpret_cast<const uint32_t*>(source + head)[i]; }, store_pair);
    } else {
      const auto load_pair = [&](int64_t i) {
        return source[head + 2 * i] | static_cast<uint32_t>(source[head + 2 * i + 1]) << 16;
      };
      copy_each(pairs, load_pair, store_pair);
    }
    if (threadIdx.x == 0 && count > 0) {
      target[0] = source[0];
      target[count - 1] = source[count - 1];
    }
  }
}

template <class Element>
__global__ void __launch_bounds__(kThreads) cross_entropy_rows_kernel(const CrossEntropyRows arguments) {
  __shared__ LogSum shared[kWarps];
  wait_for_kernels_before();
  const int64_t number = blockIdx.x;
  const LogitRow<Element> row(static_cast<Element*>(arguments.logits) + number * arguments.pitch, arguments.classes);
  const int64_t target = arguments.target[number];
  constexpr int kCount = kVectorElements<Element>;
  if (arguments.writes_gradient && threadIdx.x < arguments.pitch - arguments.classes) {
    store_rounded(0.0F, row.first + arguments.classes + threadIdx.x);
  }
  if (arguments.kept != nullptr) {
    copy_row(row.first, arguments.classes, static_cast<Element*>(arguments.kept) + number * arguments.classes);
  }
  if (target == arguments.ignore_index) {
    __syncthreads();  // what is copied is not overwritten yet
    if (arguments.writes_gradient) {
      row.visit([](Element* vector, int64_t /*at*/) { store(vector, Vector{}); },
                [](Element* element, int64_t /*at*/) { store_rounded(0.0F, element); });
    }
    if (threadIdx.x == 0) {
      arguments.loss[number] = 0.0F;
    }
    return;
  }
  if (target < 0 || target >= arguments.classes) {
    __trap();
  }
  const float logit = to_float(row.first[target]);  // before it is overwritten
  LogSum found;
  row.visit(
      [&](const Element* vector, int64_t /*at*/) {
        float x[kCount];
        to_floats<Element>(as_vector(*reinterpret_cast<const uint4*>(vector)), x);
        float above = found.largest;
#pragma unroll
        for (const float number : x) {
          above = fmaxf(above, number);
        }
        found.exponentials *= __expf(found.largest - above);
        found.largest = above;
#pragma unroll
        for (const float number : x) {
          found.exponentials += __expf(number - above);
          found.sum += number;
        }
      },
      [&](const Element* element, int64_t /*at*/) {
        const float x = to_float(*element);
        found.join({fmaxf(x, kLowest), 1.0F, x});
      });
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    found.join(found.of_lane(distance));
  }
  if (lane_index() == 0) {
    shared[threadIdx.x / kWarp] = found;
  }
  __syncthreads();
  found = shared[0];
  for (int warp = 1; warp < kWarps; ++warp) {
    found.join(shared[warp]);
  }
  const float log_sum = found.largest + logf(found.exponentials);
  const float smoothing = arguments.label_smoothing;
  const float share = smoothing / static_cast<float>(arguments.classes);
  if (threadIdx.x == 0) {
    arguments.loss[number] = log_sum - (1.0F - smoothing) * logit - (smoothing == 0.0F ? 0.0F : share * found.sum) +
                             arguments.z_loss * log_sum * log_sum;
  }
  if (!arguments.writes_gradient) {
    return;
  }
  const float factor = __fmaf_rn(2.0F * arguments.z_loss, log_sum, 1.0F);
  const auto gradient = [&](float x, int64_t at) {
    const float probability = __expf(x - log_sum);
    return __fmaf_rn(probability, factor, -share) - (at == target ? 1.0F - smoothing : 0.0F);
  };
  row.visit(
      [&](Element* vector, int64_t at) {
        float x[kCount];
        to_floats<Element>(as_vector(*reinterpret_cast<const uint4*>(vector)), x);
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          x[k] = gradient(x[k], at + k);
        }
        store_streaming(vector, to_vector<Element>(x));
      },
      [&](Element* element, int64_t at) { store_rounded(gradient(to_float(*element), at), element); });
}

}  // namespace

cudaError_t cross_entropy_rows(const CrossEntropyRows& arguments, cudaStream_t stream) {
  if (arguments.rows == 0) {
    return cudaSuccess;
  }
  cudaError_t error = cudaSuccess;
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    error = launch_kernel(cross_entropy_rows_kernel<Element>, static_cast<unsigned>(arguments.rows), kThreads, 0,
                          stream, arguments);
  });
  return error;
}

}  // namespace actnn::cuda
