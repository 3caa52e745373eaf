#include <algorithm>

#include "actnn/cuda/quantize.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/quantize_segment.cuh"
#include "src/cuda/sample_bits.cuh"

namespace actnn::cuda {
namespace {

/// `TilePlan::lanes_log2` of the default group size, for which there is a kernel of its own.
constexpr int kDefaultLanesLog2 = 3;
static_assert(kDefaultGroupSize == kLaneOctets * kOctet << kDefaultLanesLog2);

/// Blocks that fill gaps, which are small.
constexpr unsigned kGapBlocks = 64;

/// Samples one after the other, with bit widths of their own.
template <class Element>
struct SampleSegments {
  Segment<Element> first;
  SampleBits samples;
  int64_t groups;  ///< of a sample

  __device__ bool has_codes(uint32_t sample) const { return samples.code_offsets[sample] != kNoCodes; }

  __device__ Segment<Element> operator[](uint32_t sample) const {
    return {first.elements + sample * first.count,
            first.count,
            first.group_size,
            first.parameters + sample * groups,
            first.codes + samples.code_offsets[sample],
            sample * static_cast<uint64_t>(ceil_div(first.count, kOctet)),
            align_up(code_bytes(first.count, samples.bits[sample]), kSegmentAlignment)};
  }
};

/// Which part of which sample a warp takes.
class SampleParts {
 public:
  SampleParts(int64_t parts, int64_t samples)
      : parts_(static_cast<uint32_t>(parts)),
        samples_(samples),
        divide_(static_cast<uint32_t>(std::max<int64_t>(1, parts))) {}

  /// Warps in all.
  int64_t warps() const { return samples_ * parts_; }

  /// Calls body(sample, part) in the warps that have one.
  template <class Body>
  __device__ void for_warp(Body&& body) const {
    const auto warp = static_cast<uint32_t>(thread_index() / kWarp);
    const uint32_t sample = divide_(warp);
    if (sample < samples_) {
      body(sample, int64_t{warp - sample * parts_});
    }
  }

 private:
  uint32_t parts_;
  int64_t samples_;
  Divider divide_;
};

template <int kLanesLog2, class Element>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_sample_tiles_kernel(SampleSegments<Element> segments, TilePlan plan, SampleParts parts,
                                 RandomSource random) {
  parts.for_warp([&](uint32_t sample, int64_t tile) {
    if (segments.has_codes(sample)) {
      const int bits = segments.samples.bits[sample];
      quantize_tile<true, kLanesLog2>(segments[sample], tile, plan, bits, random.load(),
                                      [&](auto&& body) { with_bits(bits, body); });
    }
  });
}

template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_sample_rests_kernel(SampleSegments<Element> segments, bool stochastic, TilePlan plan, SampleParts parts,
                                 RandomSource random) {
  parts.for_warp([&](uint32_t sample, int64_t part) {
    if (segments.has_codes(sample)) {
      quantize_group(segments[sample], plan.rest_group(part), plan.rest_lanes, segments.samples.bits[sample],
                     random.load(), stochastic);
    }
  });
}

/// What no tile and no rest writes: the groups of samples without codes, the padding, and the room after all codes.
template <class Element>
__global__ void __launch_bounds__(kBlockThreads) fill_gaps_kernel(SampleSegments<Element> segments, Padding padding) {
  padding.zero();
  const int64_t threads = int64_t{gridDim.x} * kBlockThreads;
  const SampleBits& samples = segments.samples;
  for (uint32_t sample = blockIdx.x; sample < samples.samples; sample += gridDim.x) {
    if (!segments.has_codes(sample)) {
      for (int64_t group = threadIdx.x; group < segments.groups; group += kBlockThreads) {
        segments.first.parameters[sample * segments.groups + group] = unrepresentable_group(kTypeOf<Element>);
      }
    }
  }
  for (int64_t i = samples.code_offsets[samples.samples] + thread_index(); i < samples.room; i += threads) {
    segments.first.codes[i] = 0;
  }
}

}  // namespace

cudaError_t quantize_per_sample(const QuantizeArguments& arguments, const SampleBits& samples, cudaStream_t stream) {
  const bool aligned = segments_are_aligned(arguments.elements, arguments.type, arguments.count, samples.samples);
  // Rounding to nearest is for tests: fast tiles would double the code.
  const TilePlan plan(arguments.count, arguments.group_size, aligned && arguments.stochastic);
  const int64_t all_groups = plan.groups * samples.samples;
  if (const cudaError_t error = locate_codes(samples, arguments.count, stream); error != cudaSuccess) {
    return error;
  }
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    const SampleSegments<Element> segments{first_segment<Element>(arguments, all_groups), samples, plan.groups};
    if (const SampleParts tiles(plan.tiles, samples.samples); tiles.warps() != 0) {
      const auto kernel = plan.lanes_log2 == kDefaultLanesLog2
                              ? quantize_sample_tiles_kernel<kDefaultLanesLog2, Element>
                              : quantize_sample_tiles_kernel<0, Element>;
      kernel<<<blocks_for(tiles.warps(), kBlockWarps), kBlockThreads, 0, stream>>>(segments, plan, tiles,
                                                                                   arguments.random);
    }
    if (const SampleParts rests(plan.rest_warps, samples.samples); rests.warps() != 0) {
      quantize_sample_rests_kernel<<<blocks_for(rests.warps(), kBlockWarps), kBlockThreads, 0, stream>>>(
          segments, arguments.stochastic, plan, rests, arguments.random);
    }
    fill_gaps_kernel<<<kGapBlocks, kBlockThreads, 0, stream>>>(segments, Padding(arguments.packed, all_groups));
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
