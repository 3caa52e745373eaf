#pragma once

#include <cstdint>

#include "actnn/core/host_device.h"

/// \file
/// Dropout's arithmetic. Element i is kept if word i % 4 of the call's Philox block i / 4 is below
/// (1 - probability) * 2^32; what is kept is scaled in float.

namespace actnn {

/// Elements that share one Philox block here: 32 random bits each.
inline constexpr int64_t kDropoutQuad = 4;

/// What the mask and the scaling need, derived from the probability in one place.
struct DropoutScale {
  uint32_t highest_kept = 0;  ///< the largest random word that keeps an element
  float scale = 0.0F;
  bool keeps_none;

  constexpr explicit DropoutScale(double probability)
      : keeps_none(static_cast<uint64_t>((1.0 - probability) * 0x1p32) == 0) {
    if (!keeps_none) {
      highest_kept = static_cast<uint32_t>(static_cast<uint64_t>((1.0 - probability) * 0x1p32) - 1);
      scale = static_cast<float>(1.0 / (1.0 - probability));
    }
  }

  /// The result for an element with this random word, before it is rounded to the element type.
  ACTNN_HOST_DEVICE constexpr float apply(float x, uint32_t word) const {
    return !keeps_none && word <= highest_kept ? x * scale : 0.0F;
  }
};

}  // namespace actnn
