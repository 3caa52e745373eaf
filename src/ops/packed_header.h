#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>
#include <optional>

#include "actnn/core/layout.h"
#include "actnn/core/rounding.h"
#include "src/ops/tensors.h"

/// \file
/// The header of packed activations (core/layout.h) on the CPU.

namespace actnn {

/// Of an activation that is packed now. The random state is advanced whatever the rounding is; what is rounded to
/// nearest has a header of zeros.
inline PackedHeader take_header(Rounding rounding, const std::optional<at::Tensor>& rng_state) {
  const RandomState random = take_random_state(rng_state);
  return PackedHeader::of(rounding == Rounding::kNearest ? RandomState{} : random, rounding);
}

inline void write_header(const PackedHeader& header, uint8_t* packed) { std::memcpy(packed, &header, sizeof header); }

inline PackedHeader read_header(const uint8_t* packed) {
  PackedHeader header;
  std::memcpy(&header, packed, sizeof header);
  return header;
}

}  // namespace actnn
