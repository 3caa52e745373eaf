#include "actnn/core/rounding.h"
#include "actnn/cuda/quantize.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/sample_bits.cuh"
#include "src/cuda/vector.cuh"

namespace actnn::cuda {
namespace {

/// A thread writes several vectors at a distance of a block's width: each store of a warp is contiguous, and all loads
/// of a thread are in flight together.
constexpr int kThreadVectors = 2;
constexpr int kBlockVectors = kBlockThreads * kThreadVectors;

/// Runs of elements within one group whatever the group size, which is divided in units of them: 32-bit numbers then
/// count up to 2^37 elements.
constexpr int kRunElements = static_cast<int>(kGroupSizeMultiple);

template <class Element>
struct PackedSegment {
  const GroupParameters* parameters;
  const uint8_t* codes;  ///< begins at a multiple of 4 bytes
  int64_t count;
  int64_t readable;  ///< bytes from `codes` on that may be read
  Element* elements;
};

/// Words that the codes of a vector can touch.
template <int kBits, class Element>
constexpr int touched_words() {
  constexpr int kWidth = kBits * kVectorElements<Element>;
  // Vectors begin at multiples of their width.
  int most = 0;
  for (int begin = 0; begin < 32 * kWidth; begin += kWidth) {
    const int words = (begin % 32 + kWidth + 31) / 32;
    most = words > most ? words : most;
  }
  return most;
}

__device__ inline GroupParameters load_parameters(const GroupParameters* parameters) {
  const uint32_t both = __ldg(reinterpret_cast<const uint32_t*>(parameters));
  return {static_cast<uint16_t>(both), static_cast<uint16_t>(both >> 16)};
}

/// The `width` bits at `position` of a string of words, both known to the compiler after unrolling.
template <int count>
__device__ uint32_t field(const uint32_t (&words)[count], int position, int width) {
  uint32_t value = words[position / 32] >> (position % 32);
  if (position % 32 + width > 32) {
    value |= words[position / 32 + 1] << (32 - position % 32);
  }
  return value & ((1u << width) - 1);
}

__device__ inline Vector pack(const float (&values)[4], float /*tag*/) {
  return {{bits_of(values[0]), bits_of(values[1]), bits_of(values[2]), bits_of(values[3])}};
}

template <class Element>
__device__ Vector pack(const float (&values)[8], Element /*tag*/) {
  return {{Pair<Element>::round(values[0], values[1]), Pair<Element>::round(values[2], values[3]),
           Pair<Element>::round(values[4], values[5]), Pair<Element>::round(values[6], values[7])}};
}

/// A word of canonical NaNs.
template <class Element>
constexpr uint32_t nan_word() {
  return kTypeOf<Element> == ElementType::kFloat32   ? kNanFloat32
         : kTypeOf<Element> == ElementType::kFloat16 ? both_halves(kNanFloat16)
                                                     : both_halves(kNanBFloat16);
}

/// The codes and parameters of one vector, loaded before any is decoded.
template <int kBits, class Element>
struct PackedVector {
  static constexpr int kWords = touched_words<kBits, Element>();
  uint32_t words[kWords];
  int shift;
  GroupParameters parameters;

  __device__ void load(const PackedSegment<Element>& segment, int64_t vector, const Divider& runs_per_group) {
    const int64_t element = vector * kVectorElements<Element>;
    const int64_t bit = element * kBits;
    const auto* source = reinterpret_cast<const uint32_t*>(segment.codes) + bit / 32;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = __ldg(source + i);
    }
    shift = static_cast<int>(bit % 32);
    parameters = load_parameters(segment.parameters + runs_per_group(static_cast<uint32_t>(element / kRunElements)));
  }

  __device__ Vector decode() const {
    const float minimum = parameter_to_float(parameters.minimum, kTypeOf<Element>);
    const float step = parameter_to_float(parameters.step, kTypeOf<Element>);
    uint32_t aligned[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      aligned[i] = __funnelshift_r(words[i], i + 1 < kWords ? words[i + 1] : 0, shift);
    }
    float values[kVectorElements<Element>];
#pragma unroll
    for (int k = 0; k < kVectorElements<Element>; ++k) {
      values[k] = actnn::decode(field(aligned, k * kBits, kBits), minimum, step);
    }
    constexpr uint32_t kNans = nan_word<Element>();
    return is_nan(minimum) ? Vector{{kNans, kNans, kNans, kNans}} : pack(values, Element{});
  }
};

/// One element, read byte by byte.
template <class Element>
__device__ void dequantize_element(const PackedSegment<Element>& segment, int64_t element, int bits,
                                   const Divider& runs_per_group) {
  const GroupParameters parameters =
      load_parameters(segment.parameters + runs_per_group(static_cast<uint32_t>(element / kRunElements)));
  const float minimum = parameter_to_float(parameters.minimum, kTypeOf<Element>);
  const float step = parameter_to_float(parameters.step, kTypeOf<Element>);
  const int64_t bit = element * bits;
  const int shift = static_cast<int>(bit % 8);
  uint32_t word = segment.codes[bit / 8];
  if (shift + bits > 8) {
    word |= static_cast<uint32_t>(segment.codes[bit / 8 + 1]) << 8;
  }
  const float value =
      is_nan(minimum) ? float_of(kNanFloat32) : decode((word >> shift) & highest_code(bits), minimum, step);
  store_rounded(value, &segment.elements[element]);
}

/// Vectors that can be read by words and written at once: all but the last few, or none.
template <int kBits, class Element>
__device__ int64_t whole_vectors(const PackedSegment<Element>& segment) {
  if (reinterpret_cast<uintptr_t>(segment.elements) % static_cast<int>(sizeof(Vector)) != 0) {
    return 0;
  }
  constexpr int kWidth = kBits * kVectorElements<Element>;
  const int64_t readable_bits = segment.readable / 4 * 32 - (PackedVector<kBits, Element>::kWords - 1) * 32;
  return max(int64_t{0}, min(segment.count / kVectorElements<Element>, readable_bits / kWidth));
}

/// The block's part of a segment.
template <int kBits, class Element>
__device__ void dequantize_part(const PackedSegment<Element>& segment, int64_t part, const Divider& runs_per_group) {
  const int64_t first = part * kBlockVectors + threadIdx.x;
  const int64_t whole = whole_vectors<kBits>(segment);
  PackedVector<kBits, Element> vectors[kThreadVectors];
#pragma unroll
  for (int i = 0; i < kThreadVectors; ++i) {
    if (first + i * kBlockThreads < whole) {
      vectors[i].load(segment, first + i * kBlockThreads, runs_per_group);
    }
  }
#pragma unroll
  for (int i = 0; i < kThreadVectors; ++i) {
    if (first + i * kBlockThreads < whole) {
      store_streaming(segment.elements + (first + i * kBlockThreads) * kVectorElements<Element>, vectors[i].decode());
    }
  }
  if ((part + 1) * kBlockVectors > whole) {
    const int64_t end = min((part + 1) * kBlockVectors * kVectorElements<Element>, segment.count);
    for (int64_t element = max(part * kBlockVectors, whole) * kVectorElements<Element> + threadIdx.x; element < end;
         element += kBlockThreads) {
      dequantize_element(segment, element, kBits, runs_per_group);
    }
  }
}

template <int kBits, class Element>
__global__ void __launch_bounds__(kBlockThreads)
    dequantize_kernel(PackedSegment<Element> segment, Divider runs_per_group) {
  dequantize_part<kBits>(segment, blockIdx.x, runs_per_group);
}

template <class Element>
__device__ void fill_with_nan(const PackedSegment<Element>& segment, int64_t part) {
  const int64_t begin = part * kBlockVectors * kVectorElements<Element>;
  const int64_t end = min(begin + kBlockVectors * kVectorElements<Element>, segment.count);
  for (int64_t element = begin + threadIdx.x; element < end; element += kBlockThreads) {
    store_rounded(float_of(kNanFloat32), &segment.elements[element]);
  }
}

/// `first` is the first sample's segment; `parts` divides by the blocks of a sample.
template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    dequantize_samples_kernel(PackedSegment<Element> first, SampleBits samples, int64_t groups,
                              uint32_t parts_per_sample, Divider parts, Divider runs_per_group) {
  const uint32_t sample = parts(blockIdx.x);
  const uint32_t part = blockIdx.x - sample * parts_per_sample;
  const int64_t offset = samples.code_offsets[sample];
  const PackedSegment<Element> segment{first.parameters + sample * groups, first.codes + offset, first.count,
                                       samples.room - offset, first.elements + sample * first.count};
  if (offset == kNoCodes) {
    fill_with_nan(segment, part);
    return;
  }
  with_bits(samples.bits[sample], [&]<int kBits>() { dequantize_part<kBits>(segment, part, runs_per_group); });
}

Divider runs_per_group(int64_t group_size) { return Divider(static_cast<uint32_t>(group_size / kRunElements)); }

template <class Element>
PackedSegment<Element> first_segment(const DequantizeArguments& arguments, int64_t groups, int64_t readable) {
  return {reinterpret_cast<const GroupParameters*>(arguments.packed), arguments.packed + codes_offset(groups),
          arguments.count, readable, static_cast<Element*>(arguments.elements)};
}

}  // namespace

cudaError_t dequantize(const DequantizeArguments& arguments, cudaStream_t stream) {
  if (arguments.count == 0) {
    return cudaSuccess;
  }
  const int64_t groups = group_count(arguments.count, arguments.group_size);
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    const int64_t vectors = ceil_div(arguments.count, kVectorElements<Element>);
    with_bits(arguments.bits, [&]<int kBits>() {
      dequantize_kernel<kBits><<<blocks_for(vectors, kBlockVectors), kBlockThreads, 0, stream>>>(
          first_segment<Element>(arguments, groups, code_bytes(arguments.count, kBits)),
          runs_per_group(arguments.group_size));
    });
  });
  return cudaGetLastError();
}

cudaError_t dequantize_per_sample(const DequantizeArguments& arguments, const SampleBits& samples,
                                  cudaStream_t stream) {
  if (arguments.count == 0 || samples.samples == 0) {
    return cudaSuccess;
  }
  if (const cudaError_t error = locate_codes(samples, arguments.count, stream); error != cudaSuccess) {
    return error;
  }
  const int64_t groups = group_count(arguments.count, arguments.group_size);
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    const int64_t vectors = ceil_div(arguments.count, kVectorElements<Element>);
    const unsigned parts = blocks_for(vectors, kBlockVectors);
    dequantize_samples_kernel<<<parts* static_cast<unsigned>(samples.samples), kBlockThreads, 0, stream>>>(
        first_segment<Element>(arguments, groups * samples.samples, 0), samples, groups, parts, Divider(parts),
        runs_per_group(arguments.group_size));
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
