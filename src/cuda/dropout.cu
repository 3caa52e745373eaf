#include <algorithm>

#include "actnn/core/dropout.h"
#include "actnn/cuda/dropout.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/vector.cuh"
#include "src/cuda/warp_tiles.cuh"

namespace actnn::cuda {
namespace {

/// Blocks on a multiprocessor: one less than kTileBlocks, for the registers that Philox takes.
constexpr int kDropoutBlocks = 5;

/// Elements 4 * quad to 4 * quad + 3 of a vector, of which `random` is the block.
__device__ void drop_quad(Vector& v, int quad, const DropoutScale& scale, const PhiloxBlock& random, float /*tag*/) {
#pragma unroll
  for (int k = 0; k < kDropoutQuad; ++k) {
    uint32_t& word = v.word[quad * kDropoutQuad + k];
    word = with_canonical_nans<float>(bits_of(scale.apply(float_of(word), random.word[k])));
  }
}

template <class Element>
__device__ void drop_quad(Vector& v, int quad, const DropoutScale& scale, const PhiloxBlock& random, Element /*tag*/) {
#pragma unroll
  for (int k = 0; k < kDropoutQuad; k += 2) {
    uint32_t& pair = v.word[(quad * kDropoutQuad + k) / 2];
    const float2 x = Pair<Element>::to_floats(pair);
    pair = with_canonical_nans<Element>(
        Pair<Element>::round(scale.apply(x.x, random.word[k]), scale.apply(x.y, random.word[k + 1])));
  }
}

template <class Element>
__device__ void drop_tile(const Element* input, Element* output, int64_t first_element, const DropoutScale& scale,
                          const RandomState& random) {
  constexpr int kQuads = kVectorElements<Element> / kDropoutQuad;
  constexpr int kStep = kWarp * kVectorElements<Element>;
  const int64_t first = first_element + lane_index() * kVectorElements<Element>;
  Vector vectors[kTileSteps];
  if (scale.keeps_none) {
#pragma unroll
    for (int step = 0; step < kTileSteps; ++step) {
      store(output + first + step * kStep, Vector{});
    }
    return;
  }
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    vectors[step] = load_streaming(input + first + step * kStep);
  }
  const auto counter = static_cast<uint64_t>(first / kDropoutQuad);
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const PhiloxBlock block = random.block(counter + step * (kStep / kDropoutQuad) + quad);
      drop_quad(vectors[step], quad, scale, block, Element{});
    }
    store(output + first + step * kStep, vectors[step]);
  }
}

template <class Element>
__device__ void drop_element(const Element* input, Element* output, int64_t i, const DropoutScale& scale,
                             const RandomState& random) {
  const PhiloxBlock block = random.block(static_cast<uint64_t>(i / kDropoutQuad));
  const auto k = static_cast<int>(i % kDropoutQuad);
  const uint32_t word = k == 0 ? block.word[0] : k == 1 ? block.word[1] : k == 2 ? block.word[2] : block.word[3];
  store_rounded(with_canonical_nan(scale.apply(to_float(input[i]), word)), &output[i]);
}

template <class Element>
using ElementTiles = WarpTiles<kVectorElements<Element>>;

template <class Element>
__global__ void __launch_bounds__(kBlockThreads, kDropoutBlocks)
    dropout_kernel(ElementTiles<Element> tiles, const Element* input, Element* output, DropoutScale scale,
                   RandomSource source, int64_t* used_state) {
  const RandomState random = source.load();
  if (used_state != nullptr && thread_index() == 0) {
    used_state[0] = static_cast<int64_t>(random.seed);
    used_state[1] = static_cast<int64_t>(random.offset);
  }
  tiles.run([&](int64_t tile) { drop_tile(input, output, tile * tiles.kTileElements, scale, random); },
            [&](int64_t first, int elements) {
#pragma unroll
              for (int step = 0; step < kRestSteps; ++step) {
                const int i = step * kWarp + lane_index();
                if (i < elements) {
                  drop_element(input, output, first + i, scale, random);
                }
              }
            });
}

}  // namespace

cudaError_t dropout(const DropoutArguments& arguments, cudaStream_t stream) {
  if (arguments.count == 0 && arguments.used_state == nullptr) {
    return cudaSuccess;
  }
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    const ElementTiles<Element> tiles(arguments.count, are_aligned(sizeof(Vector), arguments.input, arguments.output));
    // One block at least: it writes the state.
    dropout_kernel<<<std::max(tiles.blocks(), 1U), kBlockThreads, 0, stream>>>(
        tiles, static_cast<const Element*>(arguments.input), static_cast<Element*>(arguments.output),
        DropoutScale(arguments.probability), arguments.random, arguments.used_state);
  });
  return cudaGetLastError();
}

}  // namespace actnn::cuda
