#include "actnn/cpu/normalized_copies.h"

#include <cstring>

namespace actnn::cpu {
namespace {

constexpr int64_t kPlaneBytes = kSplitLanes * static_cast<int64_t>(sizeof(uint32_t));
constexpr int64_t kStepBytes = sizeof(SplitSteps);

/// Where a group's planes begin in a packed tensor of so many.
int64_t planes_of(const SplitLayout<int64_t>& layout, int64_t group, int planes) {
  return codes_offset(layout.groups()) + group * planes * kPlaneBytes;
}

}  // namespace

void drop_sides(const uint8_t* packed, const SplitLayout<int64_t>& layout, int bits, uint8_t* normalized, int64_t first,
                int64_t last) {
  std::memcpy(normalized + first * kStepBytes, packed + first * kStepBytes, (last - first) * kStepBytes);
  for (int64_t group = first; group < last; ++group) {
    std::memcpy(normalized + planes_of(layout, group, bits),
                packed + planes_of(layout, group, split_bits(bits)) + kPlaneBytes, bits * kPlaneBytes);
  }
}

void add_sides(const uint8_t* normalized, const uint8_t* sides, int side_bits, const SplitLayout<int64_t>& layout,
               int bits, uint8_t* packed, int64_t first, int64_t last) {
  std::memcpy(packed + first * kStepBytes, normalized + first * kStepBytes, (last - first) * kStepBytes);
  for (int64_t group = first; group < last; ++group) {
    uint8_t* planes = packed + planes_of(layout, group, split_bits(bits));
    if (sides) {
      std::memcpy(planes, sides + planes_of(layout, group, side_bits), kPlaneBytes);
    } else {
      std::memset(planes, 0xFF, kPlaneBytes);
    }
    std::memcpy(planes + kPlaneBytes, normalized + planes_of(layout, group, bits), bits * kPlaneBytes);
  }
}

}  // namespace actnn::cpu
