#include "actnn/cuda/quantize.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/quantize_segment.cuh"

namespace actnn::cuda {
namespace {

template <int kBits, bool kStochastic, int kLanesLog2, class Element>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_tiles_kernel(Segment<Element> segment, TilePlan plan, RandomSource random, Padding padding) {
  padding.zero();
  const int64_t tile = thread_index() / kWarp;
  if (tile < plan.tiles) {
    quantize_tile<kStochastic, kLanesLog2>(segment, tile, plan, kBits, random.load(),
                                           [](auto&& body) { body.template operator()<kBits>(); });
  }
}

template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_rest_kernel(Segment<Element> segment, int bits, bool stochastic, TilePlan plan, RandomSource random,
                         Padding padding) {
  padding.zero();
  const int64_t part = thread_index() / kWarp;
  if (part < plan.rest_warps) {
    quantize_group(segment, plan.rest_group(part), plan.rest_lanes, bits, random.load(), stochastic);
  }
}

}  // namespace

cudaError_t quantize(const QuantizeArguments& arguments, cudaStream_t stream) {
  const bool aligned = segments_are_aligned(arguments.elements, arguments.type, arguments.count, 1);
  const TilePlan plan(arguments.count, arguments.group_size, aligned);
  const Padding padding(arguments.packed, plan.groups);
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    const Segment<Element> segment = first_segment<Element>(arguments, plan.groups);
    if (plan.tiles != 0) {
      with_bits(arguments.bits, [&]<int kBits>() {
        constexpr decltype(&quantize_tiles_kernel<kBits, false, 0, Element>) kStochasticKernels[] = {
            quantize_tiles_kernel<kBits, true, 2, Element>, quantize_tiles_kernel<kBits, true, 3, Element>,
            quantize_tiles_kernel<kBits, true, 4, Element>, quantize_tiles_kernel<kBits, true, 5, Element>};
        const auto kernel = arguments.stochastic ? kStochasticKernels[plan.lanes_log2 - 2]
                                                 : quantize_tiles_kernel<kBits, false, 0, Element>;
        kernel<<<blocks_for(plan.tiles, kBlockWarps), kBlockThreads, 0, stream>>>(segment, plan, arguments.random,
                                                                                  padding);
      });
    }
    if (plan.rest_warps != 0) {
      quantize_rest_kernel<<<blocks_for(plan.rest_warps, kBlockWarps), kBlockThreads, 0, stream>>>(
          segment, arguments.bits, arguments.stochastic, plan, arguments.random, padding);
    }
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
