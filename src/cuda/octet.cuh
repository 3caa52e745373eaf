#pragma once

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/scalar_types.h"
#include "src/cuda/vector.cuh"

/// \file
/// Eight neighbouring elements in registers: loading, ranges, conversion to float.

namespace actnn::cuda {

/// The smaller (larger) number, or NaN if one is NaN.
__device__ inline float min_or_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
__device__ inline float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

/// The smallest and largest of some elements; NaN if one is NaN.
struct Range {
  float smallest;
  float largest;
};

template <class Element>
class Octet;

template <>
class Octet<float> {
 public:
  __device__ float operator[](int k) const { return float_of(halves_[k / 4].word[k % 4]); }

  /// `elements` begins at a multiple of 16 bytes.
  __device__ void load(const float* elements) {
    halves_[0] = load_streaming(elements);
    halves_[1] = load_streaming(elements + kOctet / 2);
  }

  /// The range of `count` octets in this lane and its `lanes` neighbours (a power of two; lanes that share all higher
  /// bits).
  template <int count>
  __device__ static Range range(const Octet (&octets)[count], int lanes) {
    Range range{octets[0][0], octets[0][0]};
#pragma unroll
    for (int i = 0; i < count * kOctet; ++i) {
      range.smallest = min_or_nan(range.smallest, octets[i / kOctet][i % kOctet]);
      range.largest = max_or_nan(range.largest, octets[i / kOctet][i % kOctet]);
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      range.smallest = min_or_nan(range.smallest, __shfl_xor_sync(~0u, range.smallest, distance));
      range.largest = max_or_nan(range.largest, __shfl_xor_sync(~0u, range.largest, distance));
    }
    return range;
  }

 private:
  Vector halves_[2];
};

/// Eight elements of a 16-bit type, as pairs.
template <class Element>
class Octet16 {
  using Native = typename Pair<Element>::Native;

 public:
  __device__ float operator[](int k) const {
    const float2 values = Pair<Element>::to_floats(pairs_.word[k / 2]);
    return k % 2 == 0 ? values.x : values.y;
  }

  __device__ void load(const Element* elements) { pairs_ = load_streaming(elements); }

  template <int count, class Derived>
  __device__ static Range range(const Derived (&octets)[count], int lanes) {
    auto smallest = from_word<Native>(octets[0].pairs_.word[0]);
    auto largest = smallest;
#pragma unroll
    for (int i = 0; i < count * kOctet / 2; ++i) {
      const auto next = from_word<Native>(octets[i / 4].pairs_.word[i % 4]);
      smallest = __hmin2_nan(smallest, next);
      largest = __hmax2_nan(largest, next);
    }
    // Both extremes travel in one pair.
    smallest = __hmin2_nan(smallest, __lowhigh2highlow(smallest));
    largest = __hmax2_nan(largest, __lowhigh2highlow(largest));
    uint32_t both = join(smallest, largest);
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      const auto own = from_word<Native>(both);
      const auto other = from_word<Native>(__shfl_xor_sync(~0u, both, distance));
      both = join(__hmin2_nan(own, other), __hmax2_nan(own, other));
    }
    const float2 values = Pair<Element>::to_floats(both);
    return {values.x, values.y};
  }

 private:
  /// The low half of `low` and the high half of `high`.
  __device__ static uint32_t join(Native low, Native high) { return __byte_perm(to_word(low), to_word(high), 0x7610); }

  Vector pairs_;
};

template <>
class Octet<BFloat16> : public Octet16<BFloat16> {};
template <>
class Octet<Float16> : public Octet16<Float16> {};

}  // namespace actnn::cuda
