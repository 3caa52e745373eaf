#include "actnn/core/rounding.h"
#include "actnn/cuda/quantize.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/sample_bits.cuh"
#include "src/cuda/tile_noise.cuh"
#include "src/cuda/unpacked_codes.cuh"
#include "src/cuda/vector.cuh"

namespace actnn::cuda {
namespace {

/// A warp writes a tile: a lane 4 vectors at a distance of 32, so that each store of the warp is contiguous and all
/// loads of a thread are in flight together.
constexpr int kLaneVectors = 4;
template <class Element>
constexpr int kTile = (kWarp * kLaneVectors) * kVectorElements<Element>;

/// Runs of elements within one group whatever the group size, which is divided in units of them: 32-bit numbers then
/// count up to 2^37 elements.
constexpr int kRunElements = static_cast<int>(kGroupSizeMultiple);

template <class Element>
struct PackedSegment {
  const GroupParameters* parameters;
  const uint8_t* codes;  ///< begins at a multiple of 4 bytes
  int64_t count;
  Element* elements;
  uint64_t first_octet;  ///< number of the first octet, which decides its noise

  /// Tiles whose elements all exist and can be written as vectors, which are the first ones. Their codes are whole
  /// words.
  __device__ int64_t whole_tiles() const {
    return reinterpret_cast<uintptr_t>(elements) % sizeof(Vector) == 0 ? count / kTile<Element> : 0;
  }
};

/// What codes are read with.
template <class Element>
struct Decoder {
  const PackedHeader* header;
  const Divider& runs_per_group;
  TileNoise<kTile<Element>>& noise;  ///< the low bytes of the numbers n of DecodingGrid

  /// Fills the tile's noise; tells whether the codes are dithered.
  __device__ bool draw(const PackedSegment<Element>& segment, int64_t tile) const {
    const ulonglong2 words = __ldg(reinterpret_cast<const ulonglong2*>(header));
    const PackedHeader loaded{words.x, words.y};
    if (loaded.dithered()) {
      const int64_t octet = tile * (kTile<Element> / kOctet);
      noise.draw(loaded.random(), segment.first_octet + static_cast<uint64_t>(octet), ~0u);
    } else {
      noise.clear();
    }
    return loaded.dithered();
  }
};

/// The parameters of a group in one word, as they are loaded.
struct ParameterWord {
  uint32_t word;

  __device__ static ParameterWord load(const GroupParameters* parameters) {
    return {__ldg(reinterpret_cast<const uint32_t*>(parameters))};
  }
  __device__ GroupParameters parameters() const {
    return {static_cast<uint16_t>(word), static_cast<uint16_t>(word >> 16)};
  }
  __device__ bool has_nan_code() const { return static_cast<int32_t>(word) < 0; }
  __device__ bool is_unrepresentable(ElementType type) const {
    return isnan(parameter_to_float(static_cast<uint16_t>(word), type));
  }
};
static_assert(kHasNanCode == 0x8000, "the highest bit of the word");

__device__ inline Vector pack(const float (&values)[4], float /*tag*/) {
  return {{bits_of(values[0]), bits_of(values[1]), bits_of(values[2]), bits_of(values[3])}};
}

template <class Element>
__device__ Vector pack(const float (&values)[8], Element /*tag*/) {
  return {{Pair<Element>::round(values[0], values[1]), Pair<Element>::round(values[2], values[3]),
           Pair<Element>::round(values[4], values[5]), Pair<Element>::round(values[6], values[7])}};
}

/// A lane's vectors of a whole tile, loaded before any is decoded.
template <int kBits, class Element>
class LaneVectors {
 public:
  __device__ void load(const PackedSegment<Element>& segment, const Decoder<Element>& decoder, int64_t tile) {
    const int bit = lane_index() * kWidth;
    const auto* source = reinterpret_cast<const uint32_t*>(segment.codes) + tile * (kLaneVectors * kWidth) + bit / 32;
    shift_ = bit % 32;
    // The last word is touched by some lanes only. To the others it may lie behind all codes.
    const int last = shift_ + kWidth > 32 * (kTouched - 1) ? kTouched - 1 : kTouched - 2;
    const auto first_run = static_cast<uint32_t>(tile * (kTile<Element> / kRunElements)) +
                           static_cast<uint32_t>(lane_index() * kElements / kRunElements);
#pragma unroll
    for (int i = 0; i < kLaneVectors; ++i) {
#pragma unroll
      for (int w = 0; w < kTouched; ++w) {
        words_[i][w] = __ldg(source + i * kWidth + (w == kTouched - 1 ? last : w));
      }
    }
    decoder.runs_per_group.with_way([&](auto&& divide) {
#pragma unroll
      for (int i = 0; i < kLaneVectors; ++i) {
        const uint32_t group = divide(first_run + i * (kWarp * kElements / kRunElements));
        parameters_[i] = ParameterWord::load(segment.parameters + group);
      }
    });
  }

  /// Whether a group has elements that are NaN.
  __device__ bool has_nan() const {
    bool nan = false;
#pragma unroll
    for (const ParameterWord& parameters : parameters_) {
      nan |= parameters.has_nan_code() | parameters.is_unrepresentable(kTypeOf<Element>);
    }
    return nan;
  }

  __device__ Vector decode(int i, const TileNoise<kTile<Element>>& tile_noise, bool dithered) const {
    const DecodingGrid grid(parameters_[i].parameters(), kTypeOf<Element>, dithered);
    uint32_t noise[kElements / 4];
    const int vector = i * kWarp + lane_index();
    if constexpr (kElements == kOctet) {
      const OctetNoise octet = tile_noise.octet(vector);
      noise[0] = octet.word[0];
      noise[1] = octet.word[1];
    } else {
      noise[0] = tile_noise.quad(vector);
    }
    constexpr int kWords = (kWidth + 31) / 32;
    uint32_t aligned[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      aligned[w] = __funnelshift_r(words_[i][w], w + 1 < kTouched ? words_[i][w + 1] : 0, shift_);
    }
    float values[kElements];
    numbers_in_mantissas<kBits>(aligned, noise, values);
#pragma unroll
    for (float& value : values) {
      value = __fmaf_rn(value - kIntegerInMantissa, grid.scale, grid.start);
    }
    return pack(values, Element{});
  }

 private:
  static constexpr int kElements = kVectorElements<Element>;
  /// Bits of a vector, and words of as many neighbouring vectors as a warp has lanes.
  static constexpr int kWidth = kBits * kElements;

  /// Words that the codes of a vector can touch: vectors begin at multiples of their width.
  static constexpr int touched() {
    int most = 0;
    for (int begin = 0; begin < 32 * kWidth; begin += kWidth) {
      const int words = (begin % 32 + kWidth + 31) / 32;
      most = words > most ? words : most;
    }
    return most;
  }
  static constexpr int kTouched = touched();

  uint32_t words_[kLaneVectors][kTouched];
  int shift_;  ///< of a vector's codes in its words, the same for all
  ParameterWord parameters_[kLaneVectors];
};

/// Writes a whole tile and returns true, or returns false where a group has NaNs: these are rare, and the usual case
/// pays one vote for them.
template <int kBits, class Element>
__device__ bool dequantize_vectors(const PackedSegment<Element>& segment, const Decoder<Element>& decoder,
                                   int64_t tile) {
  LaneVectors<kBits, Element> vectors;
  vectors.load(segment, decoder, tile);
  // The noise is drawn while the codes are on their way.
  const bool dithered = decoder.draw(segment, tile);
  if (__any_sync(~0u, vectors.has_nan())) {
    return false;
  }
  Element* target = segment.elements + tile * kTile<Element> + lane_index() * kVectorElements<Element>;
#pragma unroll
  for (int i = 0; i < kLaneVectors; ++i) {
    store_streaming(target + i * (kWarp * kVectorElements<Element>), vectors.decode(i, decoder.noise, dithered));
  }
  return true;
}

/// One element, read byte by byte. `low`: the low byte of its number n.
template <class Element>
__device__ void dequantize_element(const PackedSegment<Element>& segment, const Divider& runs_per_group,
                                   int64_t element, int bits, uint32_t low, bool dithered) {
  const uint32_t group = runs_per_group(static_cast<uint32_t>(element / kRunElements));
  const ParameterWord parameters = ParameterWord::load(segment.parameters + group);
  const DecodingGrid grid(parameters.parameters(), kTypeOf<Element>, dithered);
  const int64_t bit = element * bits;
  const int shift = static_cast<int>(bit % 8);
  uint32_t word = segment.codes[bit / 8];
  if (shift + bits > 8) {
    word |= static_cast<uint32_t>(segment.codes[bit / 8 + 1]) << 8;
  }
  const uint32_t code = (word >> shift) & highest_code(bits);
  const bool nan = is_nan(grid.start) || (parameters.has_nan_code() && code == highest_code(bits));
  store_rounded(nan ? float_of(kNanFloat32) : grid.value(undithered_code(code) | low), &segment.elements[element]);
}

/// A tile of any kind. `with_width` as in `quantize_tile`.
template <class Element, class WithWidth>
__device__ void dequantize_tile(const PackedSegment<Element>& segment, const Decoder<Element>& decoder, int64_t tile,
                                int bits, WithWidth&& with_width) {
  bool done = false;
  if (tile < segment.whole_tiles()) {
    with_width([&]<int kBits>() { done = dequantize_vectors<kBits>(segment, decoder, tile); });
  }
  if (!done) {
    const bool dithered = decoder.draw(segment, tile);
    const int64_t first = tile * kTile<Element>;
    const auto count = static_cast<int>(min(segment.count - first, int64_t{kTile<Element>}));
    for (int i = lane_index(); i < count; i += kWarp) {
      dequantize_element(segment, decoder.runs_per_group, first + i, bits, decoder.noise[i], dithered);
    }
  }
}

template <int kBits, class Element>
__global__ void __launch_bounds__(kBlockThreads)
    dequantize_kernel(PackedSegment<Element> segment, const PackedHeader* header, Divider runs_per_group) {
  __shared__ TileNoise<kTile<Element>> noise[kBlockWarps];
  const int64_t tile = warp_index();
  if (tile * kTile<Element> < segment.count) {
    dequantize_tile(segment, Decoder<Element>{header, runs_per_group, noise[threadIdx.x / kWarp]}, tile, kBits,
                    [](auto&& body) { body.template operator()<kBits>(); });
  }
}

template <class Element>
__device__ void fill_with_nan(const PackedSegment<Element>& segment, int64_t tile) {
  const int64_t end = min((tile + 1) * kTile<Element>, segment.count);
  for (int64_t element = tile * kTile<Element> + lane_index(); element < end; element += kWarp) {
    store_rounded(float_of(kNanFloat32), &segment.elements[element]);
  }
}

/// `first` is the first sample's segment.
template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    dequantize_samples_kernel(PackedSegment<Element> first, const PackedHeader* header, SampleBits samples,
                              int64_t groups, SampleParts parts, Divider runs_per_group) {
  __shared__ TileNoise<kTile<Element>> noise[kBlockWarps];
  parts.for_warp([&](uint32_t sample, int64_t tile) {
    const int64_t offset = samples.code_offsets[sample];
    const PackedSegment<Element> segment{first.parameters + sample * groups, first.codes + offset, first.count,
                                         first.elements + sample * first.count,
                                         first_octet_of_sample(sample, first.count)};
    if (offset == kNoCodes) {
      fill_with_nan(segment, tile);
      return;
    }
    const int bits = samples.bits[sample];
    dequantize_tile(segment, Decoder<Element>{header, runs_per_group, noise[threadIdx.x / kWarp]}, tile, bits,
                    [&](auto&& body) { with_bits(bits, body); });
  });
}

Divider runs_per_group(int64_t group_size) { return Divider(static_cast<uint32_t>(group_size / kRunElements)); }

template <class Element>
PackedSegment<Element> first_segment(const DequantizeArguments& arguments, int64_t all_groups) {
  return {reinterpret_cast<const GroupParameters*>(arguments.packed + kHeaderBytes),
          arguments.packed + codes_offset(all_groups), arguments.count, static_cast<Element*>(arguments.elements), 0};
}

const PackedHeader* header_of(const DequantizeArguments& arguments) {
  return reinterpret_cast<const PackedHeader*>(arguments.packed);
}

}  // namespace

cudaError_t dequantize(const DequantizeArguments& arguments, cudaStream_t stream) {
  if (arguments.count == 0) {
    return cudaSuccess;
  }
  const int64_t groups = group_count(arguments.count, arguments.group_size);
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    with_bits(arguments.bits, [&]<int kBits>() {
      dequantize_kernel<kBits><<<blocks_for(arguments.count, kBlockWarps * kTile<Element>), kBlockThreads, 0, stream>>>(
          first_segment<Element>(arguments, groups), header_of(arguments), runs_per_group(arguments.group_size));
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
    const SampleParts parts(ceil_div(arguments.count, kTile<Element>), samples.samples);
    dequantize_samples_kernel<<<blocks_for(parts.warps(), kBlockWarps), kBlockThreads, 0, stream>>>(
        first_segment<Element>(arguments, groups * samples.samples), header_of(arguments), samples, groups, parts,
        runs_per_group(arguments.group_size));
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
