#include "actnn/cuda/norm_act.h"
#include "src/cuda/column_copies.cuh"

namespace actnn::cuda {
namespace {

/// Blocks of a multiprocessor, as many as have the registers for an octet of rows.
constexpr int kGradientBlocks = 4;
constexpr int kOutputBlocks = 6;

/// Kernels without vectors or with a slope are rare: they ask at run time what there is, so that there are fewer of
/// them.
template <bool kVectors, Below kBelow>
constexpr bool kIsCommon = kVectors&& kBelow == Below::kFlat;

template <class Element, bool kVectors, ActivationFunction kFunction, Below kBelow, bool kSecond, bool kFromX,
          bool kSum>
__global__ void __launch_bounds__(kUnpackingThreads, kGradientBlocks)
    input_gradient_kernel(const Backward<Element> backward, const WarpColumns columns, const StageParts parts,
                          const NormActGradient* channels, Element* grad_input, Element* grad_sum) {
  using Copies = ColumnCopies<Element, kVectors, kFromX, /*kBothSides=*/!is_smooth(kFunction)>;
  using Place = typename Copies::Place;
  extern __shared__ uint4 shared[];
  __shared__ typename Copies::Table table;
  __shared__ WarpTable<float4, Place> maps;
  __shared__ WarpTable<float2, Place> smooth_maps;
  wait_for_kernels_before();
  if (columns.part() >= columns.parts) {
    return;
  }
  constexpr bool kMaySecond = kSecond || !kIsCommon<kVectors, kBelow>;
  constexpr bool kMaySum = kSum || (!kIsCommon<kVectors, kBelow> && !is_smooth(kFunction));
  const bool has_second = kMaySecond && backward.second_grad != nullptr;
  const bool has_sum = kMaySum && grad_sum != nullptr;
  maps.load(columns, [&](int64_t channel) {
    const NormActGradient& map = channels[channel];
    return make_float4(map.scale, map.of_copy, map.shift, 0.0F);
  });
  if constexpr (is_smooth(kFunction)) {
    smooth_maps.load(columns, [&](int64_t channel) { return make_float2(channels[channel].a, channels[channel].b); });
  }
  Copies copies(backward, columns, parts, shared, table,
                [&](int64_t channel) { return channels[channel].linear != 0.0F; });
  Place place(columns, columns.first_channel(), columns.column());
  typename Place::Row grad[kRows];
  typename Place::Row second[kMaySecond ? kRows : 1];
  constexpr int kGradients = kMaySecond ? 2 : 1;
  auto rows = copies.template rows_ahead<kGradients>();
  // Elements are fetched before results are stored in the same places, which may be the same memory.
  const auto compute = [&] {
    rows.take(0, place, grad);
    if constexpr (kMaySecond) {
      if (has_second) {
        rows.take(1, place, second);
      }
    }
    typename Place::Row sum[kMaySum ? kRows : 1];
    FiniteCheck<Element> check;
    float results[kRows][2];
    float dz[kRows][2];
    copies.for_each_pair(
        place,
        [&](int pair, int i, const SavedOctet& octet) {
          const int k = pair + i;
          const float4 map = maps.of(place, k);
          float2 smooth_map = make_float2(0.0F, 0.0F);
          if constexpr (is_smooth(kFunction)) {
            smooth_map = smooth_maps.of(place, k);
          }
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            float gradient = grad[j][k];
            if constexpr (kMaySecond) {
              gradient = has_second ? gradient + second[j][k] : gradient;
            }
            const float scaled = smooth_map.x * octet.copies[j];
            dz[j][i] = gradient_of_z<kFunction, kBelow>(gradient, octet, j, backward.slope, scaled + smooth_map.y);
            const float of_gradient = map.x * dz[j][i];
            const float of_copy = map.y * octet.copies[j];
            const float both = of_gradient + of_copy;
            results[j][i] = both + map.z;
          }
        },
        [&](int pair) {
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            grad[j].set_pair(pair, results[j][0], results[j][1]);
            check.add(grad[j], pair);
            if constexpr (kMaySum) {
              sum[j].set_pair(pair, dz[j][0], dz[j][1]);
            }
          }
        });
    if (!check.all_finite()) {
      make_nans_canonical(grad);
      if constexpr (kMaySum) {
        make_nans_canonical(sum);
      }
    }
    place.store(grad, grad_input);
    if constexpr (kMaySum) {
      if (has_sum) {
        place.store(sum, grad_sum);
      }
    }
  };
  copies.template visit</*kBackwards=*/false, /*kInStep=*/true>(place, rows, compute);
}

template <class Element, bool kVectors, ActivationFunction kFunction, Below kBelow>
__global__ void __launch_bounds__(kUnpackingThreads, kOutputBlocks)
    output_kernel(const Backward<Element> backward, const WarpColumns columns, const StageParts parts,
                  const DecodeMap* channels, Element* output) {
  using Copies = ColumnCopies<Element, kVectors, /*kFromX=*/false, /*kBothSides=*/kBelow == Below::kSloped>;
  using Place = typename Copies::Place;
  extern __shared__ uint4 shared[];
  __shared__ WarpTable<float4, Place> maps;
  wait_for_kernels_before();
  if (columns.part() >= columns.parts) {
    return;
  }
  maps.load(columns, [&](int64_t channel) {
    const DecodeMap& map = channels[channel];
    // Where either is not finite, NaN stays on either side.
    const bool finite = is_finite(map.a) && is_finite(map.b);
    return make_float4(map.a, map.b, float_of(finite ? 0 : 0xFFU), 0.0F);
  });
  typename Copies::Table table;
  Copies copies(backward, columns, parts, shared, table,
                [&](int64_t channel) { return channels[channel].linear != 0.0F; });
  Place place(columns, columns.first_channel(), columns.column());
  const auto compute = [&] {
    typename Place::Row y[kRows];
    FiniteCheck<Element> check;
    float results[kRows][2];
    copies.for_each_pair(
        place,
        [&](int pair, int i, const SavedOctet& octet) {
          const float4 map = maps.of(place, pair + i);
          const uint32_t kept = octet.sides | octet.nans | bits_of(map.z);
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            const float scaled = map.x * octet.copies[j];
            const float z = scaled + map.y;
            if constexpr (is_smooth(kFunction)) {
              results[j][i] = activate_copy<kFunction>(z, octet, j).y;
            } else if constexpr (kFunction == ActivationFunction::kReLU6) {
              results[j][i] = relu6_of_copy(z, octet.is_above(j), octet.passes_gradient(j));
            } else {
              const bool is_kept = ((kept >> j) & 1U) != 0;
              results[j][i] = is_kept ? z : kBelow == Below::kFlat ? 0.0F : backward.slope * z;
            }
          }
        },
        [&](int pair) {
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            y[j].set_pair(pair, results[j][0], results[j][1]);
            check.add(y[j], pair);
          }
        });
    if (!check.all_finite()) {
      make_nans_canonical(y);
    }
    place.store(y, output);
  };
  auto no_rows = copies.template rows_ahead<0>();
  copies.template visit</*kBackwards=*/false, /*kInStep=*/false>(place, no_rows, compute);
}

}  // namespace

cudaError_t norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                                    void* grad_sum, cudaStream_t stream) {
  const int64_t rows = backward.layout.rows;
  const int64_t count = backward.layout.channels;
  if (rows == 0 || count == 0) {
    return cudaSuccess;
  }
  const bool vectors =
      has_packed_vectors(count, backward.type, backward.grad, backward.second_grad, backward.x, grad_input, grad_sum);
  cudaError_t error = cudaSuccess;
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    const Backward<Element> arguments(backward);
    with_gradient_function(backward.activation, [&]<ActivationFunction kFunction, Below kBelow>() {
      with_flags(
          [&]<bool kVectors, bool kSecond, bool kFromX, bool kSum>() {
            constexpr bool kCommon = kIsCommon<kVectors, kBelow>;
            // Nothing is added behind a smooth activation's norm: no sum.
            if constexpr ((kCommon || !(kSecond || kSum)) && !(is_smooth(kFunction) && kSum)) {
              const WarpColumns columns = warps_of_items(rows, count, kGradientBlocks * kUnpackingThreads);
              const auto kernel = input_gradient_kernel<Element, kVectors, kFunction, kBelow, kSecond, kFromX, kSum>;
              constexpr int kMatrices = (kSecond || !kCommon ? 2 : 1) + (kFromX ? 1 : 0);
              const StageParts parts(columns, arguments, RowsAhead<ColumnPlace<Element, kVectors>, kMatrices>::kBytes);
              error = launch_warps(kernel, columns, parts, stream, arguments, columns, parts, channels,
                                   static_cast<Element*>(grad_input), static_cast<Element*>(grad_sum));
            }
          },
          vectors, vectors && kBelow == Below::kFlat && backward.second_grad != nullptr, backward.x != nullptr,
          vectors && kBelow == Below::kFlat && grad_sum != nullptr);
    });
  });
  return error;
}

cudaError_t norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, cudaStream_t stream) {
  const int64_t rows = backward.layout.rows;
  const int64_t count = backward.layout.channels;
  if (rows == 0 || count == 0) {
    return cudaSuccess;
  }
  const WarpColumns columns = warps_of_items(rows, count, kOutputBlocks * kUnpackingThreads);
  cudaError_t error = cudaSuccess;
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    const Backward<Element> arguments(backward);
    const auto launch = [&]<ActivationFunction kFunction, Below kBelow>() {
      with_flags(
          [&]<bool kVectors>() {
            const auto kernel = output_kernel<Element, kVectors, kFunction, kBelow>;
            const StageParts parts(columns, arguments);
            error = launch_warps(kernel, columns, parts, stream, arguments, columns, parts, channels,
                                 static_cast<Element*>(y));
          },
          has_packed_vectors(count, backward.type, y));
    };
    if (backward.activation.function == ActivationFunction::kReLU6) {
      launch.template operator()<ActivationFunction::kReLU6, Below::kFlat>();
    } else {
      with_gradient_function(backward.activation, launch);
    }
  });
  return error;
}

}  // namespace actnn::cuda
