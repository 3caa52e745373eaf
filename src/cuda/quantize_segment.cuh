#pragma once

#include <cstdint>

#include "actnn/core/rounding.h"
#include "actnn/cuda/quantize.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/octet.cuh"
#include "src/cuda/packed_octet.cuh"
#include "src/cuda/tile_noise.cuh"
#include "src/cuda/tiles.cuh"

/// \file
/// Quantization of a segment's tiles and groups by the warps of a kernel.

namespace actnn::cuda {

/// One run of elements with one bit width.
template <class Element>
struct Segment {
  const Element* elements;
  int64_t count;
  int64_t group_size;
  GroupParameters* parameters;
  uint8_t* codes;        ///< begins at a multiple of 4 bytes
  uint64_t first_octet;  ///< number of the first octet, which decides its noise; even
  int64_t code_end;      ///< bytes after the last code up to here become 0
};

/// The state that noise is drawn with: what the header keeps of it.
__device__ inline RandomState drawn_state(const RandomSource& source) {
  return PackedHeader::of(source.load(), Rounding::kDithered).random();
}

/// Any group, by some neighbouring lanes; all lanes of the warp take part, perhaps with a group beyond the last.
template <class Element>
__device__ void quantize_group(const Segment<Element>& segment, int64_t group, int lanes, int bits,
                               const RandomState& random, Rounding rounding) {
  const int member = lane_index() % lanes;
  const int64_t begin = group * segment.group_size;
  const int64_t end = min(begin + segment.group_size, segment.count);
  const GroupRange range = group_range(segment.elements, begin, end, lanes);
  const GroupParameters parameters = choose_grid(range, bits, kTypeOf<Element>);
  if (member == 0 && begin < end) {
    segment.parameters[group] = parameters;
  }
  const EncodingGrid grid = encoding_grid(parameters, kTypeOf<Element>);
  const OctetSteps steps(bits);
  for (int64_t octet = begin / kOctet + member; octet * kOctet < end; octet += lanes) {
    const AnyOctet<Element> values(segment.elements, octet, end);
    constexpr uint32_t kHalfSteps = kHalfStep * 0x01010101u;
    const OctetNoise noise = rounding == Rounding::kNearest
                                 ? OctetNoise{{kHalfSteps, kHalfSteps}}
                                 : random.octet(segment.first_octet + static_cast<uint64_t>(octet));
    uint64_t codes = 0;
#pragma unroll
    for (int k = 0; k < kOctet; ++k) {
      const uint32_t code = is_finite(values[k]) ? encode(values[k], grid, noise[k], bits) : highest_code(bits);
      codes |= uint64_t{k < values.count() ? code : 0} << (8 * k);
    }
    const uint64_t packed = is_nan(grid.minimum) ? 0 : pack_octet(codes, steps);
    for (int i = 0; i < bits; ++i) {
      segment.codes[octet * bits + i] = static_cast<uint8_t>(packed >> (8 * i));
    }
  }
  if (begin < end && end == segment.count) {
    for (int64_t i = code_bytes(end, bits) + member; i < segment.code_end; i += lanes) {
      segment.codes[i] = 0;
    }
  }
}

/// A whole tile of 1024 elements, rounded at random. `with_width(body)` calls body.operator()<bits>(): where the bit
/// width is known only when the kernel runs, just the few instructions that depend on it exist for all of them.
template <int kLanesLog2, class Element, class WithWidth>
__device__ void quantize_tile(const Segment<Element>& segment, int64_t tile, const TilePlan& plan, int bits,
                              const RandomSource& source, TileNoise<kTileElements>& noise, WithWidth&& with_width) {
  const TilePart<kLanesLog2> part(plan.lanes_log2);
  const int64_t group = part.group_of_segment(tile);
  Octet<Element> octets[kLaneOctets];
  part.load(segment.elements + tile * kTileElements, octets);
  // The noise is drawn while the elements are on their way; without the barrier the compiler would load them later.
  __syncwarp();
  const RandomState random = drawn_state(source);
  noise.draw(random, segment.first_octet + static_cast<uint64_t>(tile) * kTileOctets);

  const Range range = Octet<Element>::range(octets, part.lanes());
  const bool all_finite = is_finite(range.smallest) && is_finite(range.largest);
  if (__any_sync(~0u, !all_finite)) {
    // Rare, and once more from the start: the usual case pays this one vote.
    quantize_group(segment, group, part.lanes(), bits, random, Rounding::kStochastic);
    return;
  }
  const GroupParameters parameters = choose_grid(GroupRange{range.smallest, range.largest}, bits, kTypeOf<Element>);
  if (part.member() == 0) {
    segment.parameters[group] = parameters;
  }
  const EncodingGrid grid = encoding_grid(parameters, kTypeOf<Element>);

  PackedOctet packed[kLaneOctets];
#pragma unroll
  for (int c = 0; c < kLaneOctets; ++c) {
    const NoisyOctet noisy = add_noise(octets[c], grid, noise.octet(part.octet(c)));
    with_width([&]<int kBits>() { packed[c] = pack<kBits>(noisy); });
  }
  if (is_nan(grid.minimum)) {
#pragma unroll
    for (int c = 0; c < kLaneOctets; ++c) {
      packed[c] = {};
    }
  }
  const int quarter = part.member() % 4;
  const int64_t octet = tile * kTileOctets + part.octet(quarter) - quarter;
  with_width([&]<int kBits>() {
    transpose<kBits>(packed, lane_index());
    store_octets<kBits>(packed, segment.codes, octet);
  });
}

/// What is neither parameters nor codes: the header, and zeros between the parameters of all groups and the codes.
struct Frame {
  PackedHeader* header;
  uint8_t* padding;
  int padding_bytes;

  Frame(uint8_t* packed, int64_t groups)
      : header(reinterpret_cast<PackedHeader*>(packed)),
        padding(packed + kHeaderBytes + groups * static_cast<int64_t>(sizeof(GroupParameters))),
        padding_bytes(static_cast<int>(packed + codes_offset(groups) - padding)) {}

  /// Written by the first block of a grid.
  __device__ void write(const RandomSource& random, Rounding rounding) const {
    if (blockIdx.x != 0) {
      return;
    }
    if (threadIdx.x == 0) {
      *header = PackedHeader::of(random.load(), rounding);
    }
    if (static_cast<int>(threadIdx.x) < padding_bytes) {
      padding[threadIdx.x] = 0;
    }
  }
};

/// The random state of a call. What is rounded to nearest does not depend on any.
inline RandomSource random_source(const QuantizeArguments& arguments) {
  return arguments.rounding == Rounding::kNearest ? RandomSource{} : arguments.random;
}

/// How warps share a segment: tiles round at random only, since rounding to nearest is for tests and would double the
/// kernels.
inline TilePlan plan_for(const QuantizeArguments& arguments, int64_t segments) {
  return {arguments.count, arguments.group_size,
          arguments.rounding != Rounding::kNearest &&
              segments_are_aligned(arguments.elements, arguments.type, arguments.count, segments)};
}

/// The segment at the beginning of a packed activation with so many groups in all.
template <class Element>
Segment<Element> first_segment(const QuantizeArguments& arguments, int64_t all_groups) {
  return {static_cast<const Element*>(arguments.elements),
          arguments.count,
          arguments.group_size,
          reinterpret_cast<GroupParameters*>(arguments.packed + kHeaderBytes),
          arguments.packed + codes_offset(all_groups),
          0,
          0};
}

}  // namespace actnn::cuda
