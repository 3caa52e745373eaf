#include "actnn/cuda/norm_act.h"
#include "actnn/cuda/norm_act_channels.h"
#include "src/cuda/channel_sums.cuh"
#include "src/cuda/column_copies.cuh"
#include "src/cuda/store_channels.cuh"

namespace actnn::cuda {
namespace {

/// Blocks of a multiprocessor, as many as have the registers for a pass.
constexpr int kSumsBlocks = 4;

/// Kernels without vectors or with a slope are rare: they ask at run time what there is, so that there are fewer of
/// them.
template <bool kVectors, Below kBelow>
constexpr bool kIsCommon = kVectors&& kBelow == Below::kFlat;

template <class Element, bool kVectors, ActivationFunction kFunction, Below kBelow, bool kSecond, bool kFromX>
__global__ void __launch_bounds__(kUnpackingThreads, kSumsBlocks)
    sums_kernel(const Backward<Element> backward, const WarpColumns columns, const StageParts parts,
                const DecodeMap* channels, const PartialSums partial) {
  constexpr bool kBothSides = kBelow == Below::kSloped;
  using Copies = ColumnCopies<Element, kVectors, kFromX, kBothSides>;
  using Place = typename Copies::Place;
  constexpr int kChannels = Place::kChannels;
  extern __shared__ uint4 shared[];
  __shared__ typename Copies::Table table;
  __shared__ WarpTable<float2, Place> maps;
  wait_for_kernels_before();
  if (columns.part() >= columns.parts) {
    return;
  }
  constexpr bool kMaySecond = kSecond || !kIsCommon<kVectors, kBelow>;
  const bool has_second = kMaySecond && backward.second_grad != nullptr;
  if constexpr (is_smooth(kFunction)) {
    maps.load(columns, [&](int64_t channel) { return make_float2(channels[channel].a, channels[channel].b); });
  }
  Copies copies(backward, columns, parts, shared, table,
                [&](int64_t channel) { return channels[channel].linear != 0.0F; });
  Place place(columns, columns.first_channel(), columns.column());
  typename Place::Row grad[kRows];
  typename Place::Row second[kMaySecond ? kRows : 1];
  ThreadSums<kChannels> sums;
  constexpr int kGradients = kMaySecond ? 2 : 1;
  auto rows = copies.template rows_ahead<kGradients>();
  const auto add = [&] {
    rows.take(0, place, grad);
    if constexpr (kMaySecond) {
      if (has_second) {
        rows.take(1, place, second);
      }
    }
    if (!place.has_all_rows()) {
      place.clear_missing(grad);
      if constexpr (kMaySecond) {
        place.clear_missing(second);
      }
    }
    if (!place.has_rows()) {
      return;  // of rows that do not exist, nothing was fetched
    }
    copies.for_each_pair(
        place,
        [&](int pair, int i, const SavedOctet& octet) {
          const int k = pair + i;
          float2 map = make_float2(0.0F, 0.0F);
          if constexpr (is_smooth(kFunction)) {
            map = maps.of(place, k);
          }
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            float gradient = grad[j][k];
            if constexpr (kMaySecond) {
              gradient = has_second ? gradient + second[j][k] : gradient;
            }
            const float scaled = map.x * octet.copies[j];
            const float dz = gradient_of_z<kFunction, kBelow>(gradient, octet, j, backward.slope, scaled + map.y);
            sums.first[k] += dz;
            sums.second[k] = __fmaf_rn(dz, octet.copies[j], sums.second[k]);
          }
        },
        [](int /*pair*/) {});
  };
  // Backwards, so that the next kernel, which begins at the front, meets what is still in the cache.
  copies.template visit</*kBackwards=*/true, /*kInStep=*/false>(place, rows, add);

#pragma unroll
  for (int k = 0; k < kChannels; ++k) {
    double sum = sums.first[k];
    double copy_sum = sums.second[k];
    for (int distance = kWarp / 2; distance >= columns.width(); distance /= 2) {
      sum += __shfl_xor_sync(~0U, sum, distance);
      copy_sum += __shfl_xor_sync(~0U, copy_sum, distance);
    }
    if (lane_index() < columns.width() && k < place.channels()) {
      partial.first(columns.part(), place.channel(k)) = static_cast<float>(sum);
      partial.second(columns.part(), place.channel(k)) = static_cast<float>(copy_sum);
    }
  }
}

template <class Store>
__global__ void __launch_bounds__(kJoinThreads) join_sums_kernel(const PartialSums partial, const Store store) {
  wait_for_kernels_before();
  join_parts(
      partial, store,
      [](int /*part*/, float sum, float copy_sum, SliceSums& sums) {
        sums.first += sum;
        sums.second += copy_sum;
      },
      [](const SliceSums& sums) {
        return make_float2(static_cast<float>(sums.first), static_cast<float>(sums.second));
      });
}

/// Both stages; `store` gets the sums of each channel.
template <class Store>
cudaError_t add_up(const NormActBackward& backward, const DecodeMap* channels, float* scratch, const Store& store,
                   cudaStream_t stream) {
  const int64_t count = backward.layout.channels;
  if (count == 0) {
    return cudaSuccess;
  }
  const WarpColumns columns = warps_of_sums(backward.layout.rows, count);
  const PartialSums partial{scratch, columns.parts, count};
  cudaError_t error = cudaSuccess;
  if (columns.parts != 0) {
    const bool vectors = has_packed_vectors(count, backward.type, backward.grad, backward.second_grad, backward.x);
    with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
      const Backward<Element> arguments(backward);
      with_gradient_function(backward.activation, [&]<ActivationFunction kFunction, Below kBelow>() {
        with_flags(
            [&]<bool kVectors, bool kSecond, bool kFromX>() {
              if constexpr (kIsCommon<kVectors, kBelow> || !kSecond) {
                const auto kernel = sums_kernel<Element, kVectors, kFunction, kBelow, kSecond, kFromX>;
                constexpr bool kCommon = kIsCommon<kVectors, kBelow>;
                constexpr int kMatrices = (kSecond || !kCommon ? 2 : 1) + (kFromX ? 1 : 0);
                const StageParts parts(columns, arguments,
                                       RowsAhead<ColumnPlace<Element, kVectors>, kMatrices>::kBytes);
                error = launch_warps(kernel, columns, parts, stream, arguments, columns, parts, channels, partial);
              }
            },
            vectors, vectors && kBelow == Below::kFlat && backward.second_grad != nullptr, backward.x != nullptr);
      });
    });
  }
  if (error != cudaSuccess) {
    return error;
  }
  return launch_kernel(join_sums_kernel<Store>, blocks_for(count, kSlicedChannels), join_threads(columns.parts), 0,
                       stream, partial, store);
}

}  // namespace

cudaError_t norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, float* scratch, float* sums,
                          float* copy_sums, cudaStream_t stream) {
  return add_up(backward, channels, scratch, StorePair{sums, copy_sums}, stream);
}

cudaError_t norm_act_sums_and_gradients(const NormActBackward& backward, const NormalizedChannels& channels,
                                        float* scratch, NormActGradient* gradients, float* grad_weight,
                                        float* grad_bias, cudaStream_t stream) {
  const StoreGradients store{channels, gradients, grad_weight, grad_bias};
  return add_up(backward, channels.decode, scratch, store, stream);
}

}  // namespace actnn::cuda
