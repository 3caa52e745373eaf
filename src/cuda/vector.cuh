#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "actnn/core/scalar_types.h"

/// \file
/// 16-byte vectors, and arithmetic on the 16-bit elements of a word. The hardware's conversions and additions give the
/// values of core/scalar_types.h but other bits for a NaN, which are replaced here.

namespace actnn::cuda {

/// 16 bytes in registers: four floats, or eight 16-bit elements, two a word with the first in the low half.
struct Vector {
  uint32_t word[4];
};

template <class Element>
inline constexpr int kVectorElements = static_cast<int>(sizeof(Vector) / sizeof(Element));

/// Whether all pointers are multiples of `bytes`.
template <class... Pointers>
bool are_aligned(uintptr_t bytes, const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) | ...) & (bytes - 1)) == 0;
}

__device__ inline Vector as_vector(const uint4& words) { return {{words.x, words.y, words.z, words.w}}; }

/// Loads what is read once; the same thread may write the memory afterwards.
__device__ inline Vector load_streaming(const void* p) { return as_vector(__ldcs(static_cast<const uint4*>(p))); }

__device__ inline void store(void* p, const Vector& v) {
  *static_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

/// Stores what is not read soon.
__device__ inline void store_streaming(void* p, const Vector& v) {
  __stcs(static_cast<uint4*>(p), make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]));
}

/// Copies the signs of bytes over whole bytes: byte k of the result is the sign of the byte of `x` that digit k of
/// `kSelector` names, where 8 is the lowest and B the highest.
template <uint32_t kSelector>
__device__ uint32_t spread_signs(uint32_t x) {
  uint32_t spread;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(spread) : "r"(x), "n"(kSelector));
  return spread;
}

/// All ones in each half whose highest bit is set, else zeros.
__device__ inline uint32_t spread_half_signs(uint32_t x) { return spread_signs<0xBB99>(x); }

template <class To>
__device__ To from_word(uint32_t word) {
  To to;
  static_assert(sizeof to == sizeof word);
  memcpy(&to, &word, sizeof to);
  return to;
}

template <class From>
__device__ uint32_t to_word(const From& from) {
  uint32_t word;
  static_assert(sizeof from == sizeof word);
  memcpy(&word, &from, sizeof word);
  return word;
}

/// What the two 16-bit types differ in: their bits, and the hardware's type for a pair of them.
template <class Element>
struct Pair;

template <>
struct Pair<Float16> {
  using Native = __half2;
  static constexpr uint32_t kInfinity = kInfinityFloat16;
  static constexpr uint32_t kNan = kNanFloat16;

  __device__ static float2 to_floats(uint32_t pair) { return __half22float2(from_word<Native>(pair)); }
  __device__ static uint32_t round(float low, float high) { return to_word(__floats2half2_rn(low, high)); }
};

template <>
struct Pair<BFloat16> {
  using Native = __nv_bfloat162;
  static constexpr uint32_t kInfinity = kInfinityBFloat16;
  static constexpr uint32_t kNan = kNanBFloat16;

  __device__ static float2 to_floats(uint32_t pair) { return {float_of(pair << 16), float_of(pair & 0xFFFF0000U)}; }
  __device__ static uint32_t round(float low, float high) { return to_word(__floats2bfloat162_rn(low, high)); }
};

inline constexpr uint32_t kHalfSigns = 0x80008000;

ACTNN_HOST_DEVICE constexpr uint32_t both_halves(uint32_t value) { return value * 0x10001U; }

/// The highest bit of each half tells whether its magnitude is above `bound`; other bits are arbitrary.
ACTNN_HOST_DEVICE constexpr uint32_t magnitudes_above(uint32_t pair, uint32_t bound) {
  return (pair & ~kHalfSigns) + both_halves(0x7FFF - bound);
}

template <class Element>
__device__ uint32_t with_canonical_nans(uint32_t word) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    return bits_of(with_canonical_nan(float_of(word)));
  } else {
    const uint32_t nans = spread_half_signs(magnitudes_above(word, Pair<Element>::kInfinity));
    return (word & ~nans) | (both_halves(Pair<Element>::kNan) & nans);
  }
}

}  // namespace actnn::cuda
