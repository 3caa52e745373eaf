#include "actnn/cuda/norm_act.h"
#include "actnn/cuda/norm_act_channels.h"
#include "src/cuda/channel_sums.cuh"
#include "src/cuda/store_channels.cuh"

namespace actnn::cuda {
namespace {

/// Leaves each channel's mean and sum of squared distances from it over the rows of a part. A thread sums up distances
/// from the warp's first row, so that a large mean does not cancel. Increments `batches`, unless it is null, for the
/// kernel behind it.
template <class Element, bool kVectors>
__global__ void __launch_bounds__(kBlockThreads)
    moments_kernel(const Element* x, const SplitTiles tiles, const PartialSums partial, int64_t* batches) {
  using Place = SplitPlace<Element, kVectors>;
  if (batches && thread_index() == 0) {
    ++*batches;
  }
  __shared__ WarpSums of_warps;
  __shared__ float origins[kTileWarps][kBlockThreads];
  __shared__ int counts[kTileWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int width = tiles.width();
  Place place(tiles);

  // A warp without rows in its part's first tile has none at all.
  const int first_row_block = warp * (kTileGroups / kTileWarps) / tiles.strip_blocks;
  const int64_t first_row = (tiles.part() * tiles.tile_row_blocks + first_row_block) * tiles.group_rows();
  typename Place::Row origin_row;
  place.template load_row<false>(x, min(first_row, tiles.layout.rows - 1), origin_row);
  float origin[kOctet];
#pragma unroll
  for (int k = 0; k < kOctetChannels; ++k) {
    origin[k] = origin_row[k];
  }

  // Backwards, so that the next kernel, which begins at the front, meets what is still in the cache.
  const int64_t steps = ceil_div(tiles.tiles - tiles.part(), tiles.parts);
  ThreadSums sums;
  int count = 0;
  for (int64_t step = steps - 1; step >= 0; --step) {
    place.move(tiles.part() + step * tiles.parts);
    typename Place::Row rows[kLaneRows];
    place.template load<false>(x, rows);
    count += place.rows();
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (j < place.rows()) {
#pragma unroll
        for (int k = 0; k < kOctetChannels; ++k) {
          const float distance = rows[j][k] - origin[k];
          sums.first[k] += distance;
          sums.second[k] = __fmaf_rn(distance, distance, sums.second[k]);
        }
      }
    }
  }
  for (int distance = kWarp / 2; distance >= width; distance /= 2) {
    count += __shfl_xor_sync(~0U, count, distance);
  }
  if (lane_index() == 0) {
    counts[warp] = count;
  }
  if (lane_index() < width) {
#pragma unroll
    for (int k = 0; k < kOctetChannels; ++k) {
      origins[warp][lane_index() * kOctetChannels + k] = origin[k];
    }
  }
  of_warps.add(sums, width);

  const int64_t channel = channel_of_thread(tiles);
  if (channel < 0) {
    return;
  }
  const double common = origins[0][threadIdx.x];
  double all = 0.0;
  double sum = 0.0;
  double squares = 0.0;
  for (int w = 0; w < kTileWarps; ++w) {
    if (counts[w] != 0) {
      const double n = counts[w];
      const double shift = origins[w][threadIdx.x] - common;
      const double of_warp = of_warps.first[w][threadIdx.x];
      all += n;
      sum += of_warp + n * shift;
      squares += of_warps.second[w][threadIdx.x] + shift * (2.0 * of_warp + n * shift);
    }
  }
  partial.first(tiles.part(), channel) = static_cast<float>(common + sum / all);
  partial.second(tiles.part(), channel) = static_cast<float>(max(squares - sum * sum / all, 0.0));
}

/// Rows that each part has.
struct PartRows {
  int last;  ///< the part of the last tile, which has rows that do not exist
  double before_last;
  double of_last;
  double behind_last;

  explicit PartRows(const SplitTiles& tiles) : last(0), before_last(0.0), of_last(0.0), behind_last(0.0) {
    if (tiles.parts != 0) {
      const int64_t rounds = (tiles.tiles - 1) / tiles.parts;
      last = static_cast<int>((tiles.tiles - 1) % tiles.parts);
      behind_last = static_cast<double>(rounds * tiles.tile_rows());
      before_last = behind_last + tiles.tile_rows();
      of_last = before_last - static_cast<double>(tiles.tiles * tiles.tile_rows() - tiles.layout.rows);
    }
  }

  __device__ double operator()(int part) const {
    return part < last ? before_last : part == last ? of_last : behind_last;
  }
};

/// Joins the moments of parts; `store` gets the mean and the biased variance of each channel.
template <class Store>
__global__ void __launch_bounds__(kJoinThreads)
    join_moments_kernel(const PartRows rows_of, double rows, const PartialSums partial, const Store store) {
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
cudaError_t find_moments(const void* x, ElementType type, const SplitLayout<int64_t>& layout, float* scratch,
                         int64_t* batches, const Store& store, cudaStream_t stream) {
  if (layout.channels == 0) {
    return cudaSuccess;
  }
  const SplitTiles tiles = tiles_of_sums(layout);
  const PartialSums partial{scratch, tiles.parts, layout.channels};
  if (tiles.parts != 0) {
    with_element_type(type, [&]<class Element>(Element /*tag*/) {
      const auto kernel = has_vectors(layout, x) ? moments_kernel<Element, true> : moments_kernel<Element, false>;
      kernel<<<tiles.blocks(), kBlockThreads, 0, stream>>>(static_cast<const Element*>(x), tiles, partial, batches);
    });
  }
  join_moments_kernel<<<blocks_for(layout.channels, kSlicedChannels), join_threads(tiles.parts), 0, stream>>>(
      PartRows(tiles), static_cast<double>(layout.rows), partial, store);
  return cudaGetLastError();
}

}  // namespace

int64_t norm_act_scratch(const SplitLayout<int64_t>& layout) {
  return 2 * tiles_of_sums(layout).parts * layout.channels;
}

cudaError_t channel_moments(const void* x, ElementType type, const SplitLayout<int64_t>& layout, float* scratch,
                            float* mean, float* variance, cudaStream_t stream) {
  return find_moments(x, type, layout, scratch, nullptr, StorePair{mean, variance}, stream);
}

cudaError_t batch_norm_channels(const void* x, ElementType type, const SplitLayout<int64_t>& layout, float* scratch,
                                const BatchStatistics& statistics, NormActChannel* forward, DecodeMap* decode,
                                float* rstd, cudaStream_t stream) {
  const auto rows = static_cast<double>(layout.rows);
  const StoreBatchChannels store{
      {statistics.weight, statistics.bias, statistics.eps, statistics.has_kink, forward, decode, rstd},
      statistics,
      static_cast<float>(rows / (rows - 1.0))};
  return find_moments(x, type, layout, scratch, statistics.batches, store, stream);
}

}  // namespace actnn::cuda
