// Matrices of rows x channels in vectors. Included once per instruction set (Highway's foreach_target), hence
// the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_MATRIX_INL_H_
#undef ACTNN_CPU_MATRIX_INL_H_
#else
#define ACTNN_CPU_MATRIX_INL_H_
#endif

#include <hwy/aligned_allocator.h>
#include <hwy/cache_control.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "actnn/core/layout.h"
#include "actnn/core/scalar_types.h"
#include "src/cpu/vector-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// Vectors of the pass for moments are channels of a row: an octet, half a one where vectors are short, or two where
/// they are long and there are pairs.
using OctetTag = hn::CappedTag<float, kOctet>;
using PairTag = hn::CappedTag<float, 2 * kOctet>;

/// Calls `body` with the tag for a matrix's rows.
template <class Body>
HWY_INLINE void with_tag(int64_t channels, Body&& body) {
  if constexpr (hn::MaxLanes(PairTag()) == 2 * kOctet) {
    if (channels % (2 * kOctet) == 0) {
      return body(PairTag());
    }
  }
  body(OctetTag());
}

/// Whether to write a result around the cache: it is large, its rows are whole cache lines, and it is in no input's
/// place.
inline bool streams(int64_t rows, int64_t channels, ElementType type, const void* result,
                    std::initializer_list<const void*> inputs) {
  const int64_t row_bytes = channels * element_size(type);
  return rows * row_bytes >= kStreamingBytes && row_bytes % kCacheLine == 0 &&
         reinterpret_cast<uintptr_t>(result) % kCacheLine == 0 &&
         std::find(inputs.begin(), inputs.end(), result) == inputs.end();
}

/// The channels' maps, field by field. A vector of fields may reach beyond the last channel: what is there means
/// nothing.
template <class Map>
class ChannelMaps {
 public:
  ChannelMaps(const Map* maps, int64_t channels)
      : channels_(channels), fields_(hwy::AllocateAligned<float>(static_cast<size_t>(kFields * channels + kBeyond))) {
    std::fill_n(fields_.get() + kFields * channels, kBeyond, 0.0F);
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

 private:
  static constexpr int64_t kFields = sizeof(Map) / sizeof(float);
  static constexpr int64_t kBeyond = hn::MaxLanes(FloatTag());
  int64_t channels_;
  hwy::AlignedFreeUniquePtr<float[]> fields_;
};

/// Elements that are prefetched ahead: whole rows, and some thousand.
inline int64_t prefetch_distance(int64_t channels) { return align_up<int64_t>(4096, 4 * channels); }

/// Asks for an element `ahead` of another one. Beyond the end of a matrix this does nothing. Inlined: GCC drops calls
/// of a function that only prefetches.
template <class Element>
HWY_INLINE void prefetch(const Element* p, int64_t ahead) {
  hwy::Prefetch(reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(p) +
                                                 static_cast<uintptr_t>(ahead) * sizeof(Element)));
}

/// Loads floats of a matrix, and asks for those `ahead`.
template <class Tag, class Element>
HWY_INLINE hn::Vec<Tag> load_ahead(Tag df, const Element* p, int64_t ahead) {
  prefetch(p, ahead);
  return load_floats(df, p);
}

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
