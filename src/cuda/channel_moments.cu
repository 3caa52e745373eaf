#include "actnn/cuda/norm_act.h"
#include "actnn/cuda/norm_act_channels.h"
#include "src/cuda/channel_sums.cuh"
#include "src/cuda/store_channels.cuh"

namespace actnn::cuda {
namespace {

/// Rows that each part has.
struct PartRows {
  int last;  ///< the part of the last tile, which has rows that do not exist
  double before_last;
  double of_last;
  double behind_last;

  explicit PartRows(const ColumnTiles& tiles) : last(0), before_last(0.0), of_last(0.0), behind_last(0.0) {
    if (tiles.parts != 0) {
      const int64_t rounds = (tiles.tiles - 1) / tiles.parts;
      last = static_cast<int>((tiles.tiles - 1) % tiles.parts);
      behind_last = static_cast<double>(rounds * kTileRows);
      before_last = behind_last + kTileRows;
      of_last = before_last - static_cast<double>(tiles.tiles * kTileRows - tiles.rows);
    }
  }

  __device__ double operator()(int part) const {
    return part < last ? before_last : part == last ? of_last : behind_last;
  }
};

/// Leaves each channel's mean and sum of squared distances from it over the rows of a part. A thread sums up distances
/// from its own first row, so that a large mean does not cancel. Increments `batches`, unless it is null, for the
/// kernel behind it.
template <class Element, bool kVectors>
__global__ void __launch_bounds__(kMostThreads)
    moments_kernel(const Element* x, const ColumnTiles tiles, const PartialSums partial, int64_t* batches) {
  using Place = ColumnPlace<Element, kVectors, kVectorElements<Element>>;
  constexpr int kChannels = Place::kChannels;
  wait_for_kernels_before();
  if (batches && thread_index() == 0) {
    ++*batches;
  }
  __shared__ BlockSums of_block;
  __shared__ float origins[kTileOctetRows][BlockSums::kMostChannels];
  __shared__ int counts[kTileOctetRows];
  Place place(tiles);

  // A thread without rows in its part's first tile has none at all.
  place.move(tiles.part());
  typename Place::Row origin{};
  place.load_first_row(x, origin);

  // Backwards, so that the next kernel, which begins at the front, meets what is still in the cache.
  const int64_t steps = ceil_div(tiles.tiles - tiles.part(), tiles.parts);
  ThreadSums<kChannels> sums;
  int count = 0;
  for (int64_t step = steps - 1; step >= 0; --step) {
    place.move(tiles.part() + step * tiles.parts);
    typename Place::Row rows[kRows];
    place.template load<false>(x, rows);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (place.has_row(j)) {
        ++count;
#pragma unroll
        for (int k = 0; k < kChannels; ++k) {
          const float distance = rows[j][k] - origin[k];
          sums.first[k] += distance;
          sums.second[k] = __fmaf_rn(distance, distance, sums.second[k]);
        }
      }
    }
  }
  if (place.column() == 0) {
    counts[place.octet_row()] = count;
  }
#pragma unroll
  for (int k = 0; k < kChannels; ++k) {
    origins[place.octet_row()][place.column() * kChannels + k] = origin[k];
  }
  of_block.set(place, sums);

  const int64_t channel = channel_of_thread(tiles);
  if (channel < 0) {
    return;
  }
  const double common = origins[0][threadIdx.x];
  double all = 0.0;
  double sum = 0.0;
  double squares = 0.0;
  for (int r = 0; r < kTileOctetRows; ++r) {
    if (counts[r] != 0) {
      const double n = counts[r];
      const double shift = origins[r][threadIdx.x] - common;
      const double of_rows = of_block.first[r][threadIdx.x];
      all += n;
      sum += of_rows + n * shift;
      squares += of_block.second[r][threadIdx.x] + shift * (2.0 * of_rows + n * shift);
    }
  }
  partial.first(tiles.part(), channel) = static_cast<float>(common + sum / all);
  partial.second(tiles.part(), channel) = static_cast<float>(max(squares - sum * sum / all, 0.0));
}

/// Joins the moments of parts; `store` gets the mean and the biased variance of each channel.
template <class Store>
__global__ void __launch_bounds__(kJoinThreads)
    join_moments_kernel(const PartRows rows_of, double rows, const PartialSums partial, const Store store) {
  wait_for_kernels_before();
  const int64_t channel = channel_to_join();
  const double origin = rows != 0.0 && channel < partial.channels ? partial.first(0, channel) : 0.0F;
  join_parts(
      partial, store,
      [&](int part, float mean, float squares, SliceSums& sums) {
        const double distance = mean - origin;
        const double weighted = rows_of(part) * distance;
        sums.first += weighted;
        sums.second += squares + weighted * distance;
      },
      [&](const SliceSums& sums) {
        const double distance = rows == 0.0 ? 0.0 : sums.first / rows;
        // A NaN stays one.
        const double biased = rows == 0.0 ? 0.0 : sums.second / rows - distance * distance;
        return make_float2(static_cast<float>(origin + distance), biased < 0.0 ? 0.0F : static_cast<float>(biased));
      });
}

/// Both stages.
template <class Store>
cudaError_t find_moments(const void* x, ElementType type, int64_t rows, int64_t channels, float* scratch,
                         int64_t* batches, const Store& store, cudaStream_t stream) {
  if (channels == 0) {
    return cudaSuccess;
  }
  const ColumnTiles tiles = tiles_of_sums(rows, channels, type);
  const PartialSums partial{scratch, tiles.parts, channels};
  cudaError_t error = cudaSuccess;
  if (tiles.parts != 0) {
    with_element_type(type, [&]<class Element>(Element /*tag*/) {
      const auto kernel =
          has_vectors(channels, type, x) ? moments_kernel<Element, true> : moments_kernel<Element, false>;
      error = launch_kernel(kernel, tiles.blocks(), tiles.threads(), 0, stream, static_cast<const Element*>(x), tiles,
                            partial, batches);
    });
  }
  if (error != cudaSuccess) {
    return error;
  }
  return launch_kernel(join_moments_kernel<Store>, blocks_for(channels, kSlicedChannels), join_threads(tiles.parts), 0,
                       stream, PartRows(tiles), static_cast<double>(rows), partial, store);
}

}  // namespace

int64_t norm_act_scratch(int64_t rows, int64_t channels, ElementType type) {
  return 2 * std::max(tiles_of_sums(rows, channels, type).parts, warps_of_sums(rows, channels).parts) * channels;
}

cudaError_t channel_moments(const void* x, ElementType type, int64_t rows, int64_t channels, float* scratch,
                            float* mean, float* variance, cudaStream_t stream) {
  return find_moments(x, type, rows, channels, scratch, nullptr, StorePair{mean, variance}, stream);
}

cudaError_t batch_norm_channels(const void* x, ElementType type, int64_t rows, int64_t channels, float* scratch,
                                const BatchStatistics& statistics, NormActChannel* forward, DecodeMap* decode,
                                float* rstd, cudaStream_t stream) {
  const StoreBatchChannels store{
      {statistics.weight, statistics.bias, statistics.eps, statistics.has_kink, forward, decode, rstd},
      statistics,
      static_cast<float>(static_cast<double>(rows) / (static_cast<double>(rows) - 1.0))};
  return find_moments(x, type, rows, channels, scratch, statistics.batches, store, stream);
}

}  // namespace actnn::cuda
