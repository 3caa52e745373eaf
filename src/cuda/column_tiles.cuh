#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "actnn/core/columns.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/octet.cuh"
#include "src/cuda/vector.cuh"

/// \file
/// How the threads of a kernel share a matrix of rows x channels in groups of columns (core/columns.h). A thread has 8
/// rows, an octet, of a *vector* of neighbouring channels. A block has a *strip* of up to 8 vectors side by side and
/// walks over its *tiles* of 256 rows: threads side by side have neighbouring vectors of the same rows, so that memory
/// is read in runs, and a thread's channels stay the same.

namespace actnn::cuda {

inline constexpr int kRows = static_cast<int>(kOctet);
inline constexpr int kTileRows = 256;
inline constexpr int kTileOctetRows = kTileRows / kRows;
inline constexpr int kMostWidth = 8;
inline constexpr int kMostThreads = kMostWidth * kTileOctetRows;

/// Channels of a thread that unpacks. Vectors of 16-bit elements are then half as long as they could be: code for more
/// of them would not fit into the caches for instructions, nor its numbers into registers.
inline constexpr int kPackedChannels = 4;

struct ColumnMatrix {
  int64_t rows;
  int64_t channels;
};

struct ColumnTiles : ColumnMatrix {
  int thread_channels;
  int width;       ///< vectors of a strip
  int64_t strips;  ///< all channels
  int64_t tiles;   ///< of a strip
  int64_t parts;   ///< blocks that share the tiles of a strip: part p has tiles p, p + parts, ...

  /// For about `threads` threads in all, each with at most `most_tiles` tiles. Strips of at most `most_width` vectors.
  ColumnTiles(int64_t matrix_rows, int64_t matrix_channels, int channels_of_thread, int64_t wanted_threads,
              int64_t most_tiles, int most_width = kMostWidth)
      : ColumnMatrix{matrix_rows, matrix_channels},
        thread_channels(channels_of_thread),
        width(1),
        strips(0),
        tiles(ceil_div(matrix_rows, int64_t{kTileRows})),
        parts(0) {
    if (rows == 0 || channels == 0) {
      return;
    }
    const int64_t vectors = ceil_div(channels, int64_t{thread_channels});
    strips = ceil_div(vectors, int64_t{most_width});
    width = static_cast<int>(ceil_div(vectors, strips));
    const int64_t wanted = std::clamp<int64_t>(wanted_threads / (threads() * strips), 1, tiles);
    parts = ceil_div(tiles, std::min(ceil_div(tiles, wanted), most_tiles));
  }

  unsigned threads() const { return static_cast<unsigned>(width * kTileOctetRows); }
  unsigned blocks() const { return static_cast<unsigned>(strips * parts); }
  ACTNN_HOST_DEVICE int strip_channels() const { return width * thread_channels; }

  __device__ int64_t strip() const { return blockIdx.x % static_cast<unsigned>(strips); }
  __device__ int64_t part() const { return blockIdx.x / static_cast<unsigned>(strips); }
  __device__ int64_t first_channel() const { return strip() * strip_channels(); }
};

/// A block begins with nothing fetched, which a few tiles make up for.
inline constexpr int64_t kMostTilesOfBlock = 4;

/// Tiles of whole vectors; a block has as many as fill the device once with so many threads a multiprocessor, but at
/// most `most_tiles`. Strips are as wide as have the shared memory: `bytes(tiles)`.
template <class Bytes>
ColumnTiles tiles_of_device(int64_t rows, int64_t channels, ElementType type, int threads_per_multiprocessor,
                            int64_t most_tiles, Bytes&& bytes) {
  const int thread_channels = static_cast<int>(sizeof(Vector) / element_size(type));
  const int64_t threads = int64_t{multiprocessors()} * threads_per_multiprocessor;
  for (int width = kMostWidth;; width /= 2) {
    const ColumnTiles tiles(rows, channels, thread_channels, threads, most_tiles, width);
    if (width == 1 || bytes(tiles) <= most_shared_memory()) {
      return tiles;
    }
  }
}

/// Whether the rows of the matrices can be loaded and stored as vectors of so many bytes. Null pointers count as
/// aligned.
template <class... Pointers>
bool has_vectors_of(int64_t vector_bytes, int64_t channels, ElementType type, const Pointers*... matrices) {
  return channels * element_size(type) % vector_bytes == 0 &&
         are_aligned(static_cast<uintptr_t>(vector_bytes), matrices...);
}
template <class... Pointers>
bool has_vectors(int64_t channels, ElementType type, const Pointers*... matrices) {
  return has_vectors_of(sizeof(Vector), channels, type, matrices...);
}
/// ... of those of threads that unpack.
template <class... Pointers>
bool has_packed_vectors(int64_t channels, ElementType type, const Pointers*... matrices) {
  return has_vectors_of(kPackedChannels * element_size(type), channels, type, matrices...);
}

/// The elements of a thread in one row, as they are in memory.
template <class Element, int kRowChannels = kPackedChannels>
struct RowVector {
  static constexpr int kChannels = kRowChannels;
  static constexpr int kWords = kChannels * static_cast<int>(sizeof(Element) / sizeof(uint16_t)) / 2;
  using Words = std::conditional_t<kWords == 4, uint4, uint2>;
  static_assert(sizeof(Words) == kWords * sizeof(uint32_t));

  uint32_t word[kWords];

  /// `first`: at a multiple of the size. `kStreaming`: it is read once.
  template <bool kStreaming>
  __device__ void load(const Element* first) {
    const auto* const from = reinterpret_cast<const Words*>(first);
    const Words words = kStreaming ? __ldcs(from) : *from;
    memcpy(word, &words, sizeof words);
  }
  __device__ void store(Element* first) const {
    Words words;
    memcpy(&words, word, sizeof words);
    *reinterpret_cast<Words*>(first) = words;
  }

  __device__ float operator[](int k) const {
    if constexpr (sizeof(Element) == sizeof(float)) {
      return float_of(word[k]);
    } else {
      const float2 pair = Pair<Element>::to_floats(word[k / 2]);
      return k % 2 == 0 ? pair.x : pair.y;
    }
  }

  /// Sets elements k and k + 1, k even, to rounded results. Their NaNs are not the canonical ones.
  __device__ void set_pair(int k, float first, float second) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      word[k] = bits_of(first);
      word[k + 1] = bits_of(second);
    } else {
      word[k / 2] = Pair<Element>::round(first, second);
    }
  }

  /// Makes 0 of what is below 0 in elements k and k + 1; NaNs stay.
  __device__ void rectify_pair(int k) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      word[k] = bits_of(max_or_nan(float_of(word[k]), 0.0F));
      word[k + 1] = bits_of(max_or_nan(float_of(word[k + 1]), 0.0F));
    } else {
      using Native = typename Pair<Element>::Native;
      word[k / 2] = to_word(__hmax2_nan(from_word<Native>(word[k / 2]), from_word<Native>(0)));
    }
  }
};

/// What kernels know of an activation below its kink: nothing is there, or it is flat; or it has a slope.
enum class Below { kFlat, kSloped };

template <class Element, int kChannels>
__device__ void make_nans_canonical(RowVector<Element, kChannels> (&rows)[kRows]) {
#pragma unroll
  for (auto& row : rows) {
#pragma unroll
    for (uint32_t& word : row.word) {
      word = with_canonical_nans<Element>(word);
    }
  }
}

/// Finds out whether results are finite: infinity and NaN times 0 is NaN. Of two results at once, where they are
/// rounded to 16 bits.
template <class Element>
class FiniteCheck {
 public:
  template <int kChannels>
  __device__ void add(const RowVector<Element, kChannels>& row, int pair) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      sum_ = __fmaf_rn(row[pair], 0.0F, __fmaf_rn(row[pair + 1], 0.0F, sum_));
    } else {
      using Native = typename Pair<Element>::Native;
      words_ = to_word(__hfma2(from_word<Native>(row.word[pair / 2]), from_word<Native>(0), from_word<Native>(words_)));
    }
  }
  __device__ bool all_finite() const { return sum_ == 0.0F && (words_ & ~kHalfSigns) == 0; }

 private:
  float sum_ = 0.0F;
  uint32_t words_ = 0;
};

/// A thread's channels, and its rows of a tile. Where a row or channel does not exist beside one that does, that one is
/// loaded in its place; where none exists, nothing is loaded. Only what exists is stored. Without vectors, elements are
/// loaded and stored one by one. Channels and octets of rows are counted in 32 bits.
template <class Element_, bool kVectors, int kRowChannels = kPackedChannels>
class ColumnPlace {
 public:
  using Element = Element_;
  using Row = RowVector<Element, kRowChannels>;
  static constexpr int kChannels = kRowChannels;
  static constexpr bool kLoadsVectors = kVectors;

  /// The `column`-th vector of those from `first_channel` on.
  __device__ ColumnPlace(const ColumnMatrix& matrix, int64_t first_channel, int column)
      : matrix_(&matrix), column_(column) {
    const auto own = static_cast<int>(first_channel) + column_ * kChannels;
    channels_ = static_cast<int>(max(int64_t{0}, min(matrix.channels - own, int64_t{kChannels})));
    channel_ = channels_ != 0 ? own : static_cast<int>(first_channel);
  }
  __device__ explicit ColumnPlace(const ColumnTiles& tiles)
      : ColumnPlace(tiles, tiles.first_channel(), static_cast<int>(threadIdx.x) % tiles.width) {
    octet_row_ = static_cast<int>(threadIdx.x) / tiles.width;
  }

  /// The thread's vector among those of the strip, and its octet of rows among those of the tile.
  __device__ int column() const { return column_; }
  __device__ int octet_row() const { return octet_row_; }
  /// The thread's channels that exist.
  __device__ int channels() const { return channels_; }
  /// The channel that is loaded as the k-th.
  __device__ int64_t channel(int k) const { return channel_ + (kVectors ? k : min(k, max(channels_ - 1, 0))); }

  /// Moves to another tile.
  __device__ void move(int64_t tile) {
    const int rows_of_tile = static_cast<int>(min(matrix_->rows - tile * kTileRows, int64_t{kTileRows}));
    rows_from_first_ = rows_of_tile - octet_row_ * kRows;
    octet_ = static_cast<uint32_t>(tile) * kTileOctetRows + static_cast<uint32_t>(octet_row_);
  }
  /// ... and to another octet of its rows.
  __device__ void move(int64_t tile, int octet_row) {
    octet_row_ = octet_row;
    move(tile);
  }
  /// Whether all of the thread's rows exist, or any. Both compare the same number: of one that was clamped to [0, 8]
  /// before, nvcc 13.0 compiled "is 8" so that it held below 0 too.
  __device__ bool has_all_rows() const { return rows_from_first_ >= kRows; }
  __device__ bool has_rows() const { return rows_from_first_ > 0; }
  __device__ bool has_row(int j) const { return j < rows_from_first_; }
  /// Philox block of the noise of channels k and k + 1, k even.
  __device__ uint64_t noise_block(int k) const {
    return octet_ * (static_cast<uint64_t>(matrix_->channels + 1) / 2) + static_cast<uint32_t>(channel_ + k) / 2;
  }

  /// Calls `body(j, element)` with the first element of the thread's channels in row j, for j = 0, ..., 7.
  template <class Body>
  __device__ void for_each_row(const Element* matrix, Body&& body) const {
    const Element* element = matrix + first_element();
    if (has_all_rows()) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        body(j, element);
        element += matrix_->channels;
      }
    } else if (has_rows()) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        element += 0 < j && has_row(j) ? matrix_->channels : 0;
        body(j, element);
      }
    }
  }

  template <bool kStreaming>
  __device__ void load(const Element* matrix, Row (&rows)[kRows]) const {
    for_each_row(matrix, [&](int j, const Element* element) { load_row<kStreaming>(element, rows[j]); });
  }

  /// Zeros in the place of rows that do not exist.
  __device__ void clear_missing(Row (&rows)[kRows]) const {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      rows[j] = has_row(j) ? rows[j] : Row{};
    }
  }

  /// The first row, if there is one.
  __device__ void load_first_row(const Element* matrix, Row& to) const {
    if (has_rows()) {
      load_row<false>(matrix + first_element(), to);
    }
  }

  /// Stores what there is.
  __device__ void store(const Row (&rows)[kRows], Element* matrix) const {
    Element* element = matrix + first_element();
    if (has_all_rows()) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        store_row(rows[j], element);
        element += matrix_->channels;
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (has_row(j)) {
        store_row(rows[j], element);
      }
      element += matrix_->channels;
    }
  }

 private:
  /// Of the thread's channels in its first row.
  __device__ int64_t first_element() const { return octet_ * (kRows * matrix_->channels) + channel_; }

  template <bool kStreaming>
  __device__ void load_row(const Element* first, Row& row) const {
    if constexpr (kVectors) {
      row.template load<kStreaming>(first);
    } else {
#pragma unroll
      for (int k = 0; k < kChannels; ++k) {
        const Element element = first[min(k, max(channels_ - 1, 0))];
        if constexpr (sizeof(Element) == sizeof(float)) {
          row.word[k] = bits_of(element);
        } else if (k % 2 == 0) {
          row.word[k / 2] = element.bits;
        } else {
          row.word[k / 2] |= static_cast<uint32_t>(element.bits) << 16;
        }
      }
    }
  }

  __device__ void store_row(const Row& row, Element* first) const {
    if constexpr (kVectors) {
      if (channels_ != 0) {
        row.store(first);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kChannels; ++k) {
        if (k < channels_) {
          if constexpr (sizeof(Element) == sizeof(float)) {
            first[k] = float_of(row.word[k]);
          } else {
            first[k] = {static_cast<uint16_t>(row.word[k / 2] >> (16 * (k % 2)))};
          }
        }
      }
    }
  }

  const ColumnMatrix* matrix_;
  int column_;
  int octet_row_ = 0;
  uint32_t octet_ = 0;  ///< of rows, among all
  int channel_;         ///< the first that is loaded
  int channels_;
  int rows_from_first_ = 0;  ///< of the tile, from the thread's first one on; below 1: the thread has none
};

/// Where what belongs to a channel is in a table of a strip's channels in shared memory: an unused entry behind each
/// thread's channels spreads the threads of a warp over the banks.
template <class Place>
__device__ int table_entry(int column, int k) {
  return column * (Place::kChannels + 1) + k;
}
ACTNN_HOST_DEVICE inline int table_entries(int width, int thread_channels) { return width * (thread_channels + 1); }

/// The coefficients of a strip's channels, in shared memory: registers have no room for them beside the elements.
template <class Coefficients, class Place>
struct ChannelTable {
  Coefficients coefficients[kMostWidth * (Place::kChannels + 1)];

  /// By `of_channel(channel)`. All threads of the block take part; they must be synchronized before the table is read.
  template <class OfChannel>
  __device__ void load(const ColumnTiles& tiles, OfChannel&& of_channel) {
    for (int c = static_cast<int>(threadIdx.x); c < tiles.strip_channels(); c += static_cast<int>(blockDim.x)) {
      coefficients[table_entry<Place>(c / Place::kChannels, c % Place::kChannels)] =
          of_channel(min(tiles.first_channel() + c, tiles.channels - 1));
    }
  }

  __device__ const Coefficients& of(const Place& place, int k) const {
    return at(table_entry<Place>(place.column(), k));
  }
  __device__ const Coefficients& at(int entry) const { return coefficients[entry]; }
};

}  // namespace actnn::cuda
