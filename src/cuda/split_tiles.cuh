#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "actnn/core/sign_split.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/octet.cuh"
#include "src/cuda/vector.cuh"

/// \file
/// How the threads of a kernel share a matrix of rows x channels in the groups of core/sign_split.h. A thread has a
/// lane of a group: 8 neighbouring channels of 4 rows. A block has a *strip* of 1, 2 or 4 neighbouring channel blocks
/// and walks over *tiles*, which are as many blocks of rows of the strip as make 32 groups: a thread's channels stay
/// the same, and what belongs to them stays in its registers.

namespace actnn::cuda {

inline constexpr int kTileWarps = kBlockThreads / kWarp;
inline constexpr int kTileGroups = kBlockThreads / kSplitLanes;
inline constexpr int kOctetChannels = static_cast<int>(kOctet);

struct SplitTiles {
  SplitLayout<int64_t> layout;
  int64_t channel_blocks;
  int64_t row_blocks;
  int64_t tiles;   ///< of a strip
  int64_t strips;  ///< all channels
  int64_t parts;   ///< blocks that share the tiles of a strip: part p has tiles p, p + parts, ...
  int across;      ///< lanes of a group side by side
  int rows_apart;  ///< from one row of a lane to the next
  int strip_blocks;
  int tile_row_blocks;  ///< blocks of rows of a tile
  int64_t row_step;     ///< elements from one row of a lane to the next
  int64_t row_octets;

  /// For about `blocks` blocks, each of at most `most_tiles` tiles.
  SplitTiles(const SplitLayout<int64_t>& matrix, int64_t blocks, int64_t most_tiles)
      : layout(matrix),
        channel_blocks(matrix.channel_blocks()),
        row_blocks(matrix.row_blocks()),
        across(matrix.lanes_across()),
        rows_apart(matrix.lane_rows_apart()),
        strip_blocks(channel_blocks % 4 == 0   ? 4
                     : channel_blocks % 2 == 0 ? 2
                                               : 1),
        tile_row_blocks(kTileGroups / strip_blocks),
        row_step(rows_apart * matrix.channels),
        row_octets(matrix.row_octets()) {
    strips = channel_blocks / strip_blocks;
    tiles = ceil_div(row_blocks, tile_row_blocks);
    if (tiles == 0 || strips == 0) {
      parts = 0;
      return;
    }
    const int64_t wanted = std::clamp<int64_t>(blocks / strips, 1, tiles);
    parts = ceil_div(tiles, std::min(ceil_div(tiles, wanted), most_tiles));
  }

  unsigned blocks() const { return static_cast<unsigned>(strips * parts); }

  ACTNN_HOST_DEVICE int group_rows() const { return rows_apart * kLaneRows; }
  ACTNN_HOST_DEVICE int tile_rows() const { return tile_row_blocks * group_rows(); }
  /// Octets of a strip.
  ACTNN_HOST_DEVICE int width() const { return strip_blocks * across; }

  __device__ int64_t strip() const { return blockIdx.x % static_cast<unsigned>(strips); }
  __device__ int64_t part() const { return blockIdx.x / static_cast<unsigned>(strips); }
};

/// As many tiles a block as fill the device once, with so many blocks a multiprocessor.
inline SplitTiles tiles_of_device(const SplitLayout<int64_t>& layout, int blocks_per_multiprocessor) {
  int device = 0;
  int multiprocessors = 1;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  return {layout, int64_t{multiprocessors} * blocks_per_multiprocessor, INT64_MAX};
}

/// Whether the octets of the matrices can be loaded and stored as vectors. Null pointers count as aligned.
template <class... Pointers>
bool has_vectors(const SplitLayout<int64_t>& layout, const Pointers*... matrices) {
  return layout.channels % kOctet == 0 && are_aligned(sizeof(Vector), matrices...);
}

/// An octet of one row, as it is in memory.
template <class Element>
struct RowOctet {
  static constexpr int kVectors = kOctetChannels / kVectorElements<Element>;
  Vector vectors[kVectors];

  __device__ float operator[](int k) const {
    if constexpr (sizeof(Element) == sizeof(float)) {
      return float_of(vectors[k / 4].word[k % 4]);
    } else {
      const float2 pair = Pair<Element>::to_floats(vectors[0].word[k / 2]);
      return k % 2 == 0 ? pair.x : pair.y;
    }
  }

  /// Sets elements k and k + 1, k even, to rounded results. Their NaNs are not the canonical ones.
  __device__ void set_pair(int k, float first, float second) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      vectors[k / 4].word[k % 4] = bits_of(first);
      vectors[k / 4].word[k % 4 + 1] = bits_of(second);
    } else {
      vectors[0].word[k / 2] = Pair<Element>::round(first, second);
    }
  }

  /// Makes 0 of what is below 0 in elements k and k + 1; NaNs stay.
  __device__ void rectify_pair(int k) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      for (int i = k; i < k + 2; ++i) {
        uint32_t& word = vectors[i / 4].word[i % 4];
        word = bits_of(max_or_nan(float_of(word), 0.0F));
      }
    } else {
      using Native = typename Pair<Element>::Native;
      uint32_t& word = vectors[0].word[k / 2];
      word = to_word(__hmax2_nan(from_word<Native>(word), from_word<Native>(0)));
    }
  }
};

/// Replaces the words of rows by `body(word)`.
template <class Element, class Body>
__device__ void for_each_word(RowOctet<Element> (&rows)[kLaneRows], Body&& body) {
#pragma unroll
  for (RowOctet<Element>& row : rows) {
#pragma unroll
    for (Vector& vector : row.vectors) {
#pragma unroll
      for (uint32_t& word : vector.word) {
        word = body(word);
      }
    }
  }
}

template <class Element>
__device__ void make_nans_canonical(RowOctet<Element> (&rows)[kLaneRows]) {
  for_each_word(rows, [](uint32_t word) { return with_canonical_nans<Element>(word); });
}

/// Finds out whether numbers are finite with an instruction each: infinity and NaN times 0 is NaN.
class FiniteCheck {
 public:
  __device__ void add(float number) { sum_ = __fmaf_rn(number, 0.0F, sum_); }
  __device__ bool all_finite() const { return sum_ == 0.0F; }

 private:
  float sum_ = 0.0F;
};

/// A thread's channels, and its rows of a tile. Where the format has an element that the matrix does not have, one of
/// the same group is loaded in its place, which changes no maximum; it is not stored.
template <class Element, bool kVectors>
class SplitPlace {
 public:
  using Row = RowOctet<Element>;

  __device__ explicit SplitPlace(const SplitTiles& tiles) : tiles_(tiles) {
    const int team = static_cast<int>(threadIdx.x) / kSplitLanes;
    const int lane = static_cast<int>(threadIdx.x) % kSplitLanes;
    channel_block_ = tiles.strip() * tiles.strip_blocks + team % tiles.strip_blocks;
    row_block_ = team / tiles.strip_blocks;
    row_of_lane_ = lane / tiles.across;
    const int64_t first = channel_block_ * tiles.layout.group_channels();
    const int64_t own = first + lane % tiles.across * kOctet;
    channels_ = static_cast<int>(max(int64_t{0}, min(tiles.layout.channels - own, kOctet)));
    channel_ = channels_ != 0 ? own : first;
  }

  /// The lane's channels that exist.
  __device__ int channels() const { return channels_; }
  /// The channel that is loaded as the lane's k-th.
  __device__ int64_t channel(int k) const { return channel_ + (kVectors ? k : min(k, max(channels_ - 1, 0))); }

  /// Moves to another tile.
  __device__ void move(int64_t tile) {
    const int64_t row_block = tile * tiles_.tile_row_blocks + row_block_;
    exists_ = row_block < tiles_.row_blocks;
    group_ = min(row_block, tiles_.row_blocks - 1) * tiles_.channel_blocks + channel_block_;
    first_row_ = row_block * tiles_.group_rows();
    const int64_t left = tiles_.layout.rows - row();
    rows_ = 0;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      rows_ += j * rows_apart() < left ? 1 : 0;
    }
  }

  /// Whether the group exists.
  __device__ bool exists() const { return exists_; }
  /// The group, or one that exists.
  __device__ int64_t group() const { return group_; }
  /// The lane's rows that exist.
  __device__ int rows() const { return rows_; }
  __device__ int64_t row() const { return first_row_ + row_of_lane_; }
  __device__ int rows_apart() const { return tiles_.rows_apart; }
  /// Ones for the elements of the lane that exist.
  __device__ uint32_t existing() const {
    const uint32_t of_row = kVectors ? (channels_ != 0 ? 0xFFU : 0U) : (1U << channels_) - 1;
    return of_row * 0x01010101U & (rows_ == kLaneRows ? ~0U : (1U << (8 * rows_)) - 1);
  }
  /// Counter of the noise of row j.
  __device__ uint64_t counter(int j) const {
    return static_cast<uint64_t>((row() + j * rows_apart()) * tiles_.row_octets + channel_ / kOctet);
  }

  template <bool kStreaming>
  __device__ void load(const Element* matrix, Row (&rows)[kLaneRows]) const {
    const Element* element = matrix + (rows_ != 0 ? row() : min(first_row_, tiles_.layout.rows - 1)) * channels_apart();
    element += channel_;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      element += 0 < j && j < rows_ ? tiles_.row_step : 0;
      load_octet<kStreaming>(element, rows[j]);
    }
  }

  template <bool kStreaming>
  __device__ void load_row(const Element* matrix, int64_t row, Row& octet) const {
    load_octet<kStreaming>(matrix + row * channels_apart() + channel_, octet);
  }

  /// Stores what there is of the lane.
  __device__ void store(const Row (&rows)[kLaneRows], Element* matrix) const {
    Element* element = matrix + row() * channels_apart() + channel_;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      if (j < rows_) {
        store_row(rows[j], element);
      }
      element += tiles_.row_step;
    }
  }

 private:
  /// From one row to the next, in elements.
  __device__ int64_t channels_apart() const { return tiles_.layout.channels; }

  template <bool kStreaming>
  __device__ void load_octet(const Element* first, Row& octet) const {
    if constexpr (kVectors) {
#pragma unroll
      for (int i = 0; i < Row::kVectors; ++i) {
        const Element* vector = first + i * kVectorElements<Element>;
        octet.vectors[i] = kStreaming ? load_streaming(vector) : as_vector(*reinterpret_cast<const uint4*>(vector));
      }
    } else {
#pragma unroll
      for (int k = 0; k < kOctetChannels; ++k) {
        const Element element = first[min(k, max(channels_ - 1, 0))];
        if constexpr (sizeof(Element) == sizeof(float)) {
          octet.vectors[k / 4].word[k % 4] = bits_of(element);
        } else if (k % 2 == 0) {
          octet.vectors[0].word[k / 2] = element.bits;
        } else {
          octet.vectors[0].word[k / 2] |= static_cast<uint32_t>(element.bits) << 16;
        }
      }
    }
  }

  __device__ void store_row(const Row& octet, Element* first) const {
    if constexpr (kVectors) {
      if (channels_ != 0) {
#pragma unroll
        for (int i = 0; i < Row::kVectors; ++i) {
          store_streaming(first + i * kVectorElements<Element>, octet.vectors[i]);
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < kOctetChannels; ++k) {
        if (k < channels_) {
          if constexpr (sizeof(Element) == sizeof(float)) {
            first[k] = float_of(octet.vectors[k / 4].word[k % 4]);
          } else {
            first[k] = {static_cast<uint16_t>(octet.vectors[0].word[k / 2] >> (16 * (k % 2)))};
          }
        }
      }
    }
  }

  const SplitTiles& tiles_;
  int64_t channel_block_;
  int64_t channel_;    ///< the first that is loaded
  int64_t first_row_;  ///< of the group
  int64_t group_;
  int row_block_;  ///< in the tile
  int row_of_lane_;
  int channels_;
  int rows_;
  bool exists_;
};

/// The coefficients of a strip's channels, in shared memory: registers have no room for them beside the elements.
template <class Coefficients>
struct ChannelTable {
  Coefficients coefficients[kOctet][kWarp];  ///< of channel k of the octet of each lane of a warp

  /// Each warp loads channel k = its number, by `of_channel(channel)`. All threads of the block take part.
  template <class Place, class OfChannel>
  __device__ void load(const Place& place, OfChannel&& of_channel) {
    static_assert(kTileWarps == kOctet);
    const int k = static_cast<int>(threadIdx.x) / kWarp;
    coefficients[k][lane_index()] = of_channel(place.channel(k));
    __syncthreads();
  }

  __device__ Coefficients operator[](int k) const { return coefficients[k][lane_index()]; }
};

/// Bit k: whether channel k of this thread is linear.
template <class Map, class Place>
__device__ uint32_t linear_channels(const Map* channels, const Place& place) {
  uint32_t linear = 0;
#pragma unroll
  for (int k = 0; k < kOctetChannels; ++k) {
    linear |= (channels[place.channel(k)].linear != 0.0F ? 1U : 0U) << k;
  }
  return linear;
}

/// Whether element k of row j is above the kink, by the word of plane 0.
__device__ inline bool is_above(uint32_t sides, int j, int k) {
  return ((sides >> (j * kOctetChannels + k)) & 1U) != 0;
}

/// The number itself, of which the compiler then knows nothing: what it derives from the number inside a loop does not
/// live in registers through all of the loop.
__device__ inline uint32_t derived_anew(uint32_t number) {
  asm volatile("" : "+r"(number));
  return number;
}
/// The same of rows, in their place.
template <class Element>
__device__ void derive_anew(RowOctet<Element> (&rows)[kLaneRows]) {
  for_each_word(rows, [](uint32_t word) { return derived_anew(word); });
}

/// The 32 values of a lane: row j of channel k is byte j of word k. A plane's bit 8 j + k is then bit k of byte j.
struct LaneValues {
  static constexpr uint32_t kBytes = 0x01010101;
  uint32_t channel[kOctet] = {};

  /// The value of row j, channel k. Its byte goes into the mantissa of 2^23: conversions are slow.
  __device__ float number(int j, int k) const {
    return float_of(__byte_perm(channel[k], bits_of(kIntegerInMantissa), 0x7650 + j)) - kIntegerInMantissa;
  }

  template <int plane>
  __device__ uint32_t plane_word() const {
    uint32_t word = 0;
#pragma unroll
    for (int k = 0; k < kOctetChannels; ++k) {
      word |= (k >= plane ? channel[k] << (k - plane) : channel[k] >> (plane - k)) & (kBytes << k);
    }
    return word;
  }
  template <int plane>
  __device__ void add_plane(uint32_t word) {
#pragma unroll
    for (int k = 0; k < kOctetChannels; ++k) {
      channel[k] |= (plane >= k ? word << (plane - k) : word >> (k - plane)) & (kBytes << plane);
    }
  }
};

/// Calls `body.operator()<plane>()` for the planes of values that codes of so many bits have.
template <int plane = 0, class Body>
__device__ void for_each_plane(int bits, Body&& body) {
  if constexpr (plane + 1 < kMaxBits) {
    if (plane + 1 < bits) {
      body.template operator()<plane>();
    }
    for_each_plane<plane + 1>(bits, body);
  }
}

/// The word of a lane in plane 0 of its group; those of the next planes are `kSplitLanes` apart.
template <class Word>
__device__ Word* words_of_lane(Word* words, int64_t group, int bits) {
  return words + group * bits * kSplitLanes + static_cast<int>(threadIdx.x) % kSplitLanes;
}

}  // namespace actnn::cuda
