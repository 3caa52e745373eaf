#include <algorithm>
#include <iterator>

#include "actnn/cuda/rotate.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/row_teams.cuh"

namespace actnn::cuda {
namespace {

/// Numbers that a thread has of each half.
template <bool kVectors>
inline constexpr int kNumbers = kVectors ? kPiece : 1;

template <bool kVectors>
__device__ void load_numbers(const RowSource& source, int64_t at, float (&x)[kNumbers<kVectors>]) {
  if constexpr (kVectors) {
    Piece piece;
    load_whole_piece(source, at, piece);
#pragma unroll
    for (int k = 0; k < kPiece; ++k) {
      x[k] = piece.x[k];
    }
  } else {
    x[0] = load_number(source, at);
  }
}

template <bool kVectors>
__device__ void store_numbers(const RowTarget& target, int64_t at, const float (&x)[kNumbers<kVectors>]) {
  if constexpr (kVectors) {
    Piece piece;
#pragma unroll
    for (int k = 0; k < kPiece; ++k) {
      piece.x[k] = x[k];
    }
    store_whole_piece(target, at, piece);
  } else {
    store_number(target, at, x[0]);
  }
}

template <bool kVectors>
__global__ void __launch_bounds__(kBlockThreads) rotate_heads_kernel(const RotateHeads arguments, int64_t items) {
  wait_for_kernels_before();
  constexpr int kCount = kNumbers<kVectors>;
  const auto half = static_cast<uint32_t>(arguments.size / 2);
  const uint32_t pieces = half / kCount;
  for (int64_t item = thread_index(); item < items; item += int64_t{gridDim.x} * kBlockThreads) {
    // What is innermost in memory comes first.
    const auto within = static_cast<uint32_t>(item % pieces) * kCount;
    const int64_t outer = item / pieces;
    const bool heads_first = arguments.strides[1] < arguments.strides[2];
    const int64_t inner_count = heads_first ? arguments.heads : arguments.length;
    const int64_t middle_count = heads_first ? arguments.length : arguments.heads;
    const int64_t inner = outer % inner_count;
    const int64_t middle = outer / inner_count % middle_count;
    const int64_t sample = outer / inner_count / middle_count;
    const int64_t head = heads_first ? inner : middle;
    const int64_t position = heads_first ? middle : inner;
    const auto element = [&](const int64_t(&strides)[3]) {
      return sample * strides[0] + head * strides[1] + position * strides[2] + within;
    };
    const int64_t at = element(arguments.strides);
    const int64_t to = element(arguments.of_output);
    const int64_t angle = sample * arguments.of_angles[0] + position * arguments.of_angles[1] + within;
    float x[2][kCount];
    float cosines[2][kCount];
    float sines[2][kCount];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      load_numbers<kVectors>(arguments.x, at + h * half, x[h]);
      load_numbers<kVectors>(arguments.cosines, angle + h * half, cosines[h]);
      load_numbers<kVectors>(arguments.sines, angle + h * half, sines[h]);
    }
    float result[2][kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float from_second = arguments.back ? x[1][k] * sines[1][k] : -x[1][k] * sines[0][k];
      const float from_first = arguments.back ? -x[0][k] * sines[0][k] : x[0][k] * sines[1][k];
      result[0][k] = __fmaf_rn(x[0][k], cosines[0][k], from_second);
      result[1][k] = __fmaf_rn(x[1][k], cosines[1][k], from_first);
    }
    store_numbers<kVectors>(arguments.output, to, result[0]);
    store_numbers<kVectors>(arguments.output, to + half, result[1]);
  }
}

bool has_vectors(const RotateHeads& arguments) {
  const auto is_whole = [](int64_t count) { return count % kPiece == 0; };
  const auto are_whole = [&](const auto& strides) {
    return std::all_of(std::begin(strides), std::end(strides), is_whole);
  };
  return is_whole(arguments.size / 2) && are_whole(arguments.strides) && are_whole(arguments.of_output) &&
         are_whole(arguments.of_angles) &&
         begin_at_vectors(arguments.x, arguments.cosines, arguments.sines, arguments.output);
}

}  // namespace

cudaError_t rotate_heads(const RotateHeads& arguments, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_flags(
      [&]<bool kVectors>() {
        const int64_t items =
            arguments.batch * arguments.heads * arguments.length * arguments.size / 2 / kNumbers<kVectors>;
        constexpr int kBlocksOfMultiprocessor = 16;
        const int64_t most = int64_t{multiprocessors()} * kBlocksOfMultiprocessor;
        const auto blocks =
            static_cast<unsigned>(std::clamp<int64_t>(ceil_div(items, int64_t{kBlockThreads}), 1, most));
        error = launch_kernel(rotate_heads_kernel<kVectors>, blocks, kBlockThreads, 0, stream, arguments, items);
      },
      has_vectors(arguments));
  return error;
}

}  // namespace actnn::cuda
