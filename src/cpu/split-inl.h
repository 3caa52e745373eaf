// The packed form of core/sign_split.h in vectors. Included once per instruction set (Highway's foreach_target), hence the toggling
// include guard instead of #pragma once.
#if defined(ACTNN_CPU_SPLIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_SPLIT_INL_H_
#undef ACTNN_CPU_SPLIT_INL_H_
#else
#define ACTNN_CPU_SPLIT_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "actnn/core/norm_act.h"
#include "actnn/core/sign_split.h"
#include "src/cpu/vector-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// The channels of a lane's row: one vector, or two where vectors are short.
using OctetTag = hn::CappedTag<float, kOctet>;
using OctetWordTag = hn::Rebind<uint32_t, OctetTag>;
using OctetVector = hn::Vec<OctetTag>;
using OctetMask = hn::Mask<OctetTag>;
inline constexpr int64_t kOctetStep = hn::MaxLanes(OctetTag());

inline constexpr int64_t kLaneElements = kLaneRows * kOctet;
inline constexpr int64_t kGroupElements = kSplitLanes * kLaneElements;

/// Results of this size and more are written around the cache.
inline constexpr int64_t kStreamingBytes = int64_t{4} << 20;
inline constexpr int64_t kCacheLine = 64;

/// Whether to write a result around the cache: it is large, its rows are whole cache lines, and it is in no input's place.
inline bool streams(const SplitLayout<int64_t>& layout, ElementType type, const void* result,
                    std::initializer_list<const void*> inputs) {
  const int64_t row_bytes = layout.channels * element_size(type);
  return layout.rows * row_bytes >= kStreamingBytes && row_bytes % kCacheLine == 0 &&
         reinterpret_cast<uintptr_t>(result) % kCacheLine == 0 &&
         std::find(inputs.begin(), inputs.end(), result) == inputs.end();
}

/// The maps of 8 channels: a field of theirs after the other, each 8 floats.
template <class Map>
struct alignas(kOctet * sizeof(float)) MapOctet {
  float fields[sizeof(Map) / sizeof(float)][kOctet];

  /// Channels `k` to `k + kOctetStep`.
  HWY_INLINE OctetVector field(int number, int64_t k) const { return hn::Load(OctetTag(), fields[number] + k); }
};

template <class Map>
std::vector<MapOctet<Map>> octets_of(const Map* maps, int64_t channels) {
  std::vector<MapOctet<Map>> octets(static_cast<size_t>(ceil_div(channels, kOctet)));
  for (int64_t channel = 0; channel < channels; ++channel) {
    const auto* fields = reinterpret_cast<const float*>(maps + channel);
    for (size_t i = 0; i < sizeof(Map) / sizeof(float); ++i) {
      octets[static_cast<size_t>(channel / kOctet)].fields[i][channel % kOctet] = fields[i];
    }
  }
  return octets;
}

/// The rows of a lane that there are.
struct LaneRows {
  int64_t place;    ///< of the first element in the group's words
  int64_t index;    ///< and in the matrix
  int64_t channel;  ///< a multiple of 8
  int64_t row;      ///< in the group
  int64_t rows;
};

/// What there is of a group of a matrix of whole octets.
struct GroupPlace {
  const SplitLayout<int64_t>& layout;
  int64_t row;      ///< the first
  int64_t channel;  ///< the first
  int64_t rows;     ///< in the group
  int64_t octets;   ///< of a row of the group

  GroupPlace(const SplitLayout<int64_t>& matrix, int64_t group)
      : layout(matrix),
        row(group / matrix.channel_blocks() * matrix.group_rows()),
        channel(group % matrix.channel_blocks() * matrix.group_channels()),
        rows(std::min(matrix.rows - row, matrix.group_rows())),
        octets(std::min(matrix.channels - channel, matrix.group_channels()) / kOctet) {}

  /// Whether codes are missing.
  bool is_cut() const { return rows < layout.group_rows() || octets < layout.lanes_across(); }

  /// Elements from a row of a lane to the next.
  int64_t stride() const { return layout.lane_rows_apart() * layout.channels; }

  /// Calls `body(lane)` with the LaneRows of each lane.
  template <class Body>
  HWY_INLINE void for_each_lane(Body&& body) const {
    const int64_t apart = layout.lane_rows_apart();
    const int64_t whole = kLaneRows;
    for (int64_t down = 0; down < std::min(apart, rows); ++down) {
      const int64_t lane_rows = rows == apart * kLaneRows ? whole : ceil_div(rows - down, apart);
      for (int64_t octet = 0; octet < octets; ++octet) {
        const int64_t lane_channel = channel + octet * kOctet;
        body(LaneRows{.place = (down * layout.lanes_across() + octet) * kLaneElements,
                      .index = (row + down) * layout.channels + lane_channel,
                      .channel = lane_channel,
                      .row = down,
                      .rows = lane_rows});
      }
    }
  }
};

/// Bytes of a group's words.
constexpr int64_t group_bytes(int bits) { return bits * kGroupElements / 8; }

/// Whether rows are whole octets; the reference does the others.
inline bool has_whole_octets(const SplitLayout<int64_t>& layout) { return layout.channels % kOctet == 0; }

/// Between words and vectors a code is a byte, in the order of the bits of the words: the side above 7 bits of value.
inline constexpr uint8_t kSideOfCode = 0x80;
using CodeTag = hn::CappedTag<uint8_t, 64>;

constexpr uint8_t bit_of_plane(int plane) { return plane == 0 ? kSideOfCode : static_cast<uint8_t>(1 << (plane - 1)); }

HWY_INLINE void store_planes(const uint8_t* HWY_RESTRICT codes, int planes, uint8_t* HWY_RESTRICT words) {
  const CodeTag d;
  for (int plane = 0; plane < planes; ++plane) {
    const auto bit = hn::Set(d, bit_of_plane(plane));
    for (int64_t i = 0; i < kGroupElements; i += static_cast<int64_t>(hn::Lanes(d))) {
      hn::StoreMaskBits(d, hn::TestBit(hn::Load(d, codes + i), bit), words + (plane * kGroupElements + i) / 8);
    }
  }
}

HWY_INLINE void load_planes(const uint8_t* HWY_RESTRICT words, int planes, uint8_t* HWY_RESTRICT codes) {
  const CodeTag d;
  for (int64_t i = 0; i < kGroupElements; i += static_cast<int64_t>(hn::Lanes(d))) {
    auto code = hn::Zero(d);
    for (int plane = 0; plane < planes; ++plane) {
      const auto mask = hn::LoadMaskBits(d, words + (plane * kGroupElements + i) / 8);
      code = hn::Or(code, hn::IfThenElseZero(mask, hn::Set(d, bit_of_plane(plane))));
    }
    hn::Store(code, d, codes + i);
  }
}

/// The activation of core/norm_act.h in vectors.
struct Bend {
  OctetVector slope;
  OctetMask is_flat;  ///< below: slope 0

  explicit Bend(float slope_below)
      : slope(hn::Set(OctetTag(), slope_below)), is_flat(hn::Eq(slope, hn::Zero(OctetTag()))) {}

  /// NaN stays, also below a slope of 0; not yet the canonical one.
  HWY_INLINE OctetVector activated(OctetVector z, OctetMask side) const {
    return hn::IfThenElse(hn::Or(side, hn::IsNaN(z)), z, below(z));
  }
  HWY_INLINE OctetVector gradient(OctetVector gradient, OctetMask side) const {
    return hn::IfThenElse(side, gradient, below(gradient));
  }

 private:
  HWY_INLINE OctetVector below(OctetVector x) const { return hn::IfThenZeroElse(is_flat, hn::Mul(slope, x)); }
};

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
