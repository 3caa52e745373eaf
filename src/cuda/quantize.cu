#include <algorithm>

#include "actnn/cuda/quantize.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/quantize_segment.cuh"

namespace actnn::cuda {
namespace {

template <int kBits, int kLanesLog2, class Element>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_tiles_kernel(Segment<Element> segment, TilePlan plan, RandomSource random, Rounding rounding,
                          Frame frame) {
  __shared__ TileNoise<kTileElements> noise[kBlockWarps];
  frame.write(random, rounding);
  const int64_t tile = warp_index();
  if (tile < plan.tiles) {
    quantize_tile<kLanesLog2>(segment, tile, plan, kBits, random, noise[threadIdx.x / kWarp],
                              [](auto&& body) { body.template operator()<kBits>(); });
  }
}

template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_rest_kernel(Segment<Element> segment, int bits, TilePlan plan, RandomSource random, Rounding rounding,
                         Frame frame) {
  frame.write(random, rounding);
  const int64_t part = warp_index();
  if (part < plan.rest_warps) {
    quantize_group(segment, plan.rest_group(part), plan.rest_lanes, bits, drawn_state(random), rounding);
  }
}

}  // namespace

cudaError_t quantize(const QuantizeArguments& arguments, cudaStream_t stream) {
  const TilePlan plan = plan_for(arguments, 1);
  const RandomSource random = random_source(arguments);
  const Frame frame(arguments.packed, plan.groups);
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    const Segment<Element> segment = first_segment<Element>(arguments, plan.groups);
    if (plan.tiles != 0) {
      with_bits(arguments.bits, [&]<int kBits>() {
        constexpr decltype(&quantize_tiles_kernel<kBits, 2, Element>) kKernels[] = {
            quantize_tiles_kernel<kBits, 2, Element>, quantize_tiles_kernel<kBits, 3, Element>,
            quantize_tiles_kernel<kBits, 4, Element>, quantize_tiles_kernel<kBits, 5, Element>};
        kKernels[plan.lanes_log2 - 2]<<<blocks_for(plan.tiles, kBlockWarps), kBlockThreads, 0, stream>>>(
            segment, plan, random, arguments.rounding, frame);
      });
    }
    // No elements have a header too.
    if (plan.rest_warps != 0 || plan.tiles == 0) {
      const unsigned blocks = std::max(1u, blocks_for(plan.rest_warps, kBlockWarps));
      quantize_rest_kernel<<<blocks, kBlockThreads, 0, stream>>>(segment, arguments.bits, plan, random,
                                                                 arguments.rounding, frame);
    }
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
