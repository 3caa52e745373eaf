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
            first_octet_of_sample(sample, first.count),
            align_up(code_bytes(first.count, samples.bits[sample]), kSegmentAlignment)};
  }
};

template <int kLanesLog2, class Element>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_sample_tiles_kernel(SampleSegments<Element> segments, TilePlan plan, SampleParts parts,
                                 RandomSource random) {
  __shared__ TileNoise<kTileElements> noise[kBlockWarps];
  parts.for_warp([&](uint32_t sample, int64_t tile) {
    if (segments.has_codes(sample)) {
      const int bits = segments.samples.bits[sample];
      quantize_tile<kLanesLog2>(segments[sample], tile, plan, bits, random, noise[threadIdx.x / kWarp],
                                [&](auto&& body) { with_bits(bits, body); });
    }
  });
}

template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_sample_rests_kernel(SampleSegments<Element> segments, TilePlan plan, SampleParts parts,
                                 RandomSource random, Rounding rounding) {
  parts.for_warp([&](uint32_t sample, int64_t part) {
    if (segments.has_codes(sample)) {
      quantize_group(segments[sample], plan.rest_group(part), plan.rest_lanes, segments.samples.bits[sample],
                     drawn_state(random), rounding);
    }
  });
}

/// What no tile and no rest writes: the header, the groups of samples without codes, the padding, and the room after
/// all codes.
template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    fill_gaps_kernel(SampleSegments<Element> segments, RandomSource random, Rounding rounding, Frame frame) {
  frame.write(random, rounding);
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
  const TilePlan plan = plan_for(arguments, samples.samples);
  const RandomSource random = random_source(arguments);
  const Rounding rounding = arguments.rounding;
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
      kernel<<<blocks_for(tiles.warps(), kBlockWarps), kBlockThreads, 0, stream>>>(segments, plan, tiles, random);
    }
    if (const SampleParts rests(plan.rest_warps, samples.samples); rests.warps() != 0) {
      quantize_sample_rests_kernel<<<blocks_for(rests.warps(), kBlockWarps), kBlockThreads, 0, stream>>>(
          segments, plan, rests, random, rounding);
    }
    fill_gaps_kernel<<<kGapBlocks, kBlockThreads, 0, stream>>>(segments, random, rounding,
                                                               Frame(arguments.packed, all_groups));
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
