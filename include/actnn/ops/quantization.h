#pragma once

#include <cstdint>

#include "actnn/core/layout.h"
#include "actnn/core/rounding.h"

namespace actnn {

/// How an activation is quantized for backward.
struct Quantization {
  int64_t bits = 4;                         ///< of a code, 1..8
  int64_t group_size = kDefaultGroupSize;   ///< elements that share a minimum and a step; a positive multiple of 32
  Rounding rounding = Rounding::kDithered;  ///< nearest biases gradients
};

}  // namespace actnn
