#pragma once

#include <cstdint>

#include "actnn/core/layout.h"
#include "actnn/core/rounding.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/octet.cuh"

/// \file
/// How the warps of a kernel share the groups of a segment.

namespace actnn::cuda {

/// A warp's work where groups have 128 to 1024 elements: 32 elements a lane, as 4 octets.
inline constexpr int kLaneOctets = 4;
inline constexpr int kTileOctets = kWarp * kLaneOctets;
/// The least number of octets of a group that a lane takes outside of tiles.
inline constexpr int kRestOctets = 2;
inline constexpr int kTileElements = kTileOctets * static_cast<int>(kOctet);

/// How warps share a segment's groups. Where groups have 128 to 1024 elements and the segment is aligned, a warp takes
/// *tiles* of 1024 elements; of the *rest* it takes as many groups as give each lane 2 octets of one group, or one.
struct TilePlan {
  int64_t groups;      ///< of the segment
  int64_t tiles;       ///< whole ones
  int64_t rest_warps;  ///< warps for the groups after the tiles
  int lanes_log2;      ///< binary logarithm of the lanes that share a group of a tile
  int rest_lanes;      ///< lanes that share a group of the rest

  TilePlan(int64_t count, int64_t group_size, bool aligned)
      : groups(group_count(count, group_size)),
        tiles(0),
        lanes_log2(group_size == 128    ? 2
                   : group_size == 256  ? 3
                   : group_size == 512  ? 4
                   : group_size == 1024 ? 5
                                        : 0),
        rest_lanes(kWarp) {
    while (rest_lanes * kRestOctets * kOctet > group_size) {
      rest_lanes /= 2;
    }
    if (lanes_log2 != 0 && aligned) {
      tiles = count / kTileElements;
    }
    rest_warps = ceil_div(groups - first_rest_group(), rest_groups());
  }

  /// Groups of a warp's part of the rest.
  ACTNN_HOST_DEVICE int rest_groups() const { return kWarp / rest_lanes; }
  ACTNN_HOST_DEVICE int64_t first_rest_group() const { return tiles << (5 - lanes_log2); }
  /// The group of this lane in a part of the rest; perhaps beyond the last group.
  __device__ int64_t rest_group(int64_t part) const {
    return first_rest_group() + part * rest_groups() + lane_index() / rest_lanes;
  }
};

/// Whether vectors of 16 bytes can be loaded from all of several segments of `count` elements, one after the other.
inline bool segments_are_aligned(const void* elements, ElementType type, int64_t count, int64_t segments) {
  return are_aligned(sizeof(Vector), elements) &&
         (segments == 1 || count * element_size(type) % static_cast<int64_t>(sizeof(Vector)) == 0);
}

/// The part of a tile that is this lane's: four octets of one group, at a distance of the group's lanes, so that loads
/// of neighbouring lanes are neighbours. `kLanesLog2` is `TilePlan::lanes_log2` where the compiler shall know it, else
/// 0.
template <int kLanesLog2 = 0>
class TilePart {
 public:
  __device__ explicit TilePart(int lanes_log2) : lanes_log2_(lanes_log2) {}

  /// Lanes of a group.
  __device__ int lanes() const { return 1 << lanes_log2(); }
  /// Number of the lane's group in the tile.
  __device__ int group() const { return lane_index() >> lanes_log2(); }
  /// Number of the lane among its group's.
  __device__ int member() const { return lane_index() & (lanes() - 1); }
  /// Number of the lane's octet c in the tile.
  __device__ int octet(int c) const { return group() * lanes() * kLaneOctets + member() + c * lanes(); }
  /// Number in the segment of the lane's group.
  __device__ int64_t group_of_segment(int64_t tile) const { return (tile << (5 - lanes_log2())) + group(); }

  template <class Element>
  __device__ void load(const Element* tile, Octet<Element> (&octets)[kLaneOctets]) const {
    const Element* first = tile + octet(0) * kOctet;
#pragma unroll
    for (int c = 0; c < kLaneOctets; ++c) {
      octets[c].load(first + c * lanes() * kOctet);
    }
  }

 private:
  __device__ int lanes_log2() const { return kLanesLog2 != 0 ? kLanesLog2 : lanes_log2_; }

  int lanes_log2_;
};

/// Elements of an octet as floats, of which those from `count` on are missing.
template <class Element>
class AnyOctet {
 public:
  __device__ AnyOctet(const Element* elements, int64_t octet, int64_t end)
      : count_(static_cast<int>(min(kOctet, end - octet * kOctet))) {
    const Element* first = elements + octet * kOctet;
    if (count_ == kOctet && reinterpret_cast<uintptr_t>(first) % 16 == 0) {
      Octet<Element> whole;
      whole.load(first);
#pragma unroll
      for (int k = 0; k < kOctet; ++k) {
        values_[k] = whole[k];
      }
    } else {
#pragma unroll
      for (int k = 0; k < kOctet; ++k) {
        values_[k] = to_float(first[k < count_ ? k : 0]);
      }
    }
  }

  __device__ int count() const { return count_; }
  /// A missing element repeats the first.
  __device__ float operator[](int k) const { return values_[k]; }

 private:
  int count_;
  float values_[kOctet];
};

/// The range of elements [begin, end), begin a multiple of 8, found by `lanes` neighbouring lanes; all lanes of the
/// warp take part, some perhaps with an empty range of their own.
template <class Element>
__device__ Range range_of_run(const Element* elements, int64_t begin, int64_t end, int lanes) {
  const float first = begin < end ? to_float(elements[begin]) : 0.0F;
  Range range{first, first};
  for (int64_t octet = begin / kOctet + lane_index() % lanes; octet * kOctet < end; octet += lanes) {
    const AnyOctet<Element> values(elements, octet, end);
#pragma unroll
    for (int k = 0; k < kOctet; ++k) {
      range = {min_or_nan(range.smallest, values[k]), max_or_nan(range.largest, values[k])};
    }
  }
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    range.smallest = min_or_nan(range.smallest, __shfl_xor_sync(~0u, range.smallest, distance));
    range.largest = max_or_nan(range.largest, __shfl_xor_sync(~0u, range.largest, distance));
  }
  return range;
}

/// The range of the finite ones among elements [begin, end), found like `range_of_run`.
template <class Element>
__device__ GroupRange finite_range_of_run(const Element* elements, int64_t begin, int64_t end, int lanes) {
  GroupRange range;
  for (int64_t octet = begin / kOctet + lane_index() % lanes; octet * kOctet < end; octet += lanes) {
    const AnyOctet<Element> values(elements, octet, end);
#pragma unroll
    for (int k = 0; k < kOctet; ++k) {
      range.add(values[k]);
    }
  }
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    range.smallest = fminf(range.smallest, __shfl_xor_sync(~0u, range.smallest, distance));
    range.largest = fmaxf(range.largest, __shfl_xor_sync(~0u, range.largest, distance));
  }
  return range;
}

/// What a group's grid is chosen by, found like `range_of_run`: groups are read a second time only if a group of the
/// warp has elements that are not finite.
template <class Element>
__device__ GroupRange group_range(const Element* elements, int64_t begin, int64_t end, int lanes) {
  const Range range = range_of_run(elements, begin, end, lanes);
  GroupRange result{range.smallest, range.largest, is_finite(range.smallest) && is_finite(range.largest)};
  if (__any_sync(~0u, !result.all_finite)) {
    const GroupRange finite = finite_range_of_run(elements, begin, end, lanes);
    result.smallest = finite.smallest;
    result.largest = finite.largest;
  }
  return result;
}

}  // namespace actnn::cuda
