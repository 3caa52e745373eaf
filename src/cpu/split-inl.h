// The packed form of core/sign_split.h in vectors. Included once per instruction set (Highway's foreach_target), hence
// the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_SPLIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_SPLIT_INL_H_
#undef ACTNN_CPU_SPLIT_INL_H_
#else
#define ACTNN_CPU_SPLIT_INL_H_
#endif

#include <hwy/aligned_allocator.h>
#include <hwy/cache_control.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "actnn/core/norm_act.h"
#include "actnn/core/sign_split.h"
#include "src/cpu/vector-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// Vectors of the passes are channels of a row: an octet, half a one where vectors are short, or two where they are
/// long and there are pairs.
using OctetTag = hn::CappedTag<float, kOctet>;
using PairTag = hn::CappedTag<float, 2 * kOctet>;

/// Calls `body` with the tag for a matrix's rows.
template <class Body>
HWY_INLINE void with_tag(const SplitLayout<int64_t>& layout, Body&& body) {
  if (hn::MaxLanes(PairTag()) == 2 * kOctet && layout.row_octets() % 2 == 0) {
    body(PairTag());
  } else {
    body(OctetTag());
  }
}

inline constexpr int64_t kLaneElements = kLaneRows * kOctet;
inline constexpr int64_t kGroupElements = kSplitLanes * kLaneElements;

/// Results of this size and more are written around the cache.
inline constexpr int64_t kStreamingBytes = int64_t{4} << 20;
inline constexpr int64_t kCacheLine = 64;

/// Whether to write a result around the cache: it is large, its rows are whole cache lines, and it is in no input's
/// place.
inline bool streams(const SplitLayout<int64_t>& layout, ElementType type, const void* result,
                    std::initializer_list<const void*> inputs) {
  const int64_t row_bytes = layout.channels * element_size(type);
  return layout.rows * row_bytes >= kStreamingBytes && row_bytes % kCacheLine == 0 &&
         reinterpret_cast<uintptr_t>(result) % kCacheLine == 0 &&
         std::find(inputs.begin(), inputs.end(), result) == inputs.end();
}

/// The channels' maps, field by field.
template <class Map>
class ChannelMaps {
 public:
  ChannelMaps(const Map* maps, int64_t channels)
      : channels_(channels),
        fields_(hwy::AllocateAligned<float>(static_cast<size_t>(kFields * std::max<int64_t>(channels, 1)))) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      const auto* fields = reinterpret_cast<const float*>(maps + channel);
      for (int64_t i = 0; i < kFields; ++i) {
        fields_[static_cast<size_t>(i * channels + channel)] = fields[i];
      }
    }
  }

  /// A field of channels `channel`, `channel` + 1, ...
  template <class Tag>
  HWY_INLINE hn::Vec<Tag> field(Tag df, float Map::*member, int64_t channel) const {
    const Map map{};
    const int64_t number = &(map.*member) - reinterpret_cast<const float*>(&map);
    return hn::LoadU(df, fields_.get() + number * channels_ + channel);
  }
  template <class Tag>
  HWY_INLINE hn::Mask<Tag> is_linear(Tag df, int64_t channel) const {
    return hn::Ne(field(df, &Map::linear, channel), hn::Zero(df));
  }

 private:
  static constexpr int64_t kFields = sizeof(Map) / sizeof(float);
  int64_t channels_;
  hwy::AlignedFreeUniquePtr<float[]> fields_;
};

/// A vector of channels in the existing rows of a lane (of two lanes: a pair of octets).
struct Strip {
  int64_t place;    ///< of the first element in the group's words; a row is 8 places
  int64_t index;    ///< and in the matrix
  int64_t stride;   ///< elements from a row to the next
  int64_t channel;  ///< the first
  int64_t rows;
};

/// Elements that are prefetched: whole rows of groups, and some thousand.
inline int64_t prefetch_distance(const SplitLayout<int64_t>& layout) {
  return align_up<int64_t>(4096, layout.group_rows() * layout.channels);
}

/// Loads floats of a matrix, and prefetches those `ahead`. Beyond the end this does nothing.
template <class Tag, class Element>
HWY_INLINE hn::Vec<Tag> load_ahead(Tag df, const Element* p, int64_t ahead) {
  hwy::Prefetch(reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(p) +
                                                 static_cast<uintptr_t>(ahead) * sizeof(Element)));
  return load_floats(df, p);
}

/// The existing part of a group in a matrix of whole octets.
struct GroupPlace {
  int64_t matrix_channels;
  int64_t row;       ///< the first
  int64_t channel;   ///< the first
  int64_t rows;      ///< in the group
  int64_t channels;  ///< in the group
  int64_t lanes_across;
  int64_t lane_rows_apart;

  GroupPlace(const SplitLayout<int64_t>& layout, int64_t group)
      : matrix_channels(layout.channels),
        row(group / layout.channel_blocks() * layout.group_rows()),
        channel(group % layout.channel_blocks() * layout.group_channels()),
        rows(std::min(layout.rows - row, layout.group_rows())),
        channels(std::min(layout.channels - channel, layout.group_channels())),
        lanes_across(layout.lanes_across()),
        lane_rows_apart(layout.lane_rows_apart()) {}

  /// Whether codes are missing.
  bool is_cut() const { return rows * channels < kGroupElements; }

  /// Calls `body(strip)` lane by lane.
  template <class Tag, class Body>
  HWY_INLINE void for_each_strip(Tag df, Body&& body) const {
    for (int64_t down = 0; down < std::min(lane_rows_apart, rows); ++down) {
      const int64_t lane_rows = is_cut() ? ceil_div(rows - down, lane_rows_apart) : kLaneRows;
      for (int64_t k = 0; k < channels; k += static_cast<int64_t>(hn::Lanes(df))) {
        body(Strip{.place = (down * lanes_across + k / kOctet) * kLaneElements + k % kOctet,
                   .index = (row + down) * matrix_channels + channel + k,
                   .stride = lane_rows_apart * matrix_channels,
                   .channel = channel + k,
                   .rows = lane_rows});
      }
    }
  }
};

/// Stores a row of a strip at its places; the octets of a pair are a lane apart.
template <class Tag>
HWY_INLINE void store_row(hn::Vec<Tag> row, Tag d, hn::TFromD<Tag>* places) {
  if constexpr (hn::MaxLanes(d) <= kOctet) {
    hn::Store(row, d, places);
  } else {
    const hn::Half<Tag> half;
    hn::Store(hn::LowerHalf(half, row), half, places);
    hn::Store(hn::UpperHalf(half, row), half, places + kLaneElements);
  }
}

template <class Tag>
HWY_INLINE hn::Vec<Tag> load_row(Tag d, const hn::TFromD<Tag>* places) {
  if constexpr (hn::MaxLanes(d) <= kOctet) {
    return hn::LoadU(d, places);
  } else {
    const hn::Half<Tag> half;
    return hn::Combine(d, hn::LoadU(half, places + kLaneElements), hn::LoadU(half, places));
  }
}

/// Bytes of a group's words.
constexpr int64_t group_bytes(int bits) { return bits * kGroupElements / 8; }

/// Whether rows are whole octets; the reference does the others.
inline bool has_whole_octets(const SplitLayout<int64_t>& layout) { return layout.channels % kOctet == 0; }

/// Between words and vectors a code is a byte, in the order of the bits of the words: the side above 7 bits of value.
inline constexpr uint8_t kSideOfCode = 0x80;
using CodeTag = hn::CappedTag<uint8_t, 64>;

constexpr uint8_t bit_of_plane(int plane) { return plane == 0 ? kSideOfCode : static_cast<uint8_t>(1 << (plane - 1)); }

/// Planes [first, first + planes) of a code; `words` begin with the first of them.
HWY_INLINE void store_planes(const uint8_t* HWY_RESTRICT codes, int first, int planes, uint8_t* HWY_RESTRICT words) {
  const CodeTag d;
  for (int plane = 0; plane < planes; ++plane) {
    const auto bit = hn::Set(d, bit_of_plane(first + plane));
    for (int64_t i = 0; i < kGroupElements; i += static_cast<int64_t>(hn::Lanes(d))) {
      hn::StoreMaskBits(d, hn::TestBit(hn::Load(d, codes + i), bit), words + (plane * kGroupElements + i) / 8);
    }
  }
}

HWY_INLINE void load_planes(const uint8_t* HWY_RESTRICT words, int first, int planes, uint8_t* HWY_RESTRICT codes) {
  const CodeTag d;
  for (int64_t i = 0; i < kGroupElements; i += static_cast<int64_t>(hn::Lanes(d))) {
    auto code = hn::Zero(d);
    for (int plane = 0; plane < planes; ++plane) {
      const auto mask = hn::LoadMaskBits(d, words + (plane * kGroupElements + i) / 8);
      code = hn::Or(code, hn::IfThenElseZero(mask, hn::Set(d, bit_of_plane(first + plane))));
    }
    hn::Store(code, d, codes + i);
  }
}

/// Codes of derivatives have values and no sides.
inline constexpr int kDerivativePlane = 1;

/// The activation of core/norm_act.h in vectors.
template <class Tag>
class Kink {
 public:
  explicit Kink(float slope) : slope_(hn::Set(Tag(), slope)), is_flat_(hn::Eq(slope_, hn::Zero(Tag()))) {}

  /// NaN stays, also below a slope of 0; not yet the canonical one.
  HWY_INLINE hn::Vec<Tag> activated(hn::Vec<Tag> z, hn::Mask<Tag> side) const {
    return hn::IfThenElse(hn::Or(side, hn::IsNaN(z)), z, below(z));
  }
  HWY_INLINE hn::Vec<Tag> gradient(hn::Vec<Tag> gradient, hn::Mask<Tag> side) const {
    return hn::IfThenElse(side, gradient, below(gradient));
  }

 private:
  HWY_INLINE hn::Vec<Tag> below(hn::Vec<Tag> x) const { return hn::IfThenZeroElse(is_flat_, hn::Mul(slope_, x)); }

  hn::Vec<Tag> slope_;
  hn::Mask<Tag> is_flat_;
};

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
