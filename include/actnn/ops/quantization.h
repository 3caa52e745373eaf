#pragma once

#include <cstdint>

#include "actnn/core/layout.h"

namespace actnn {

/// How an activation is quantized for backward.
struct Quantization {
  int64_t bits = 4;                        ///< of a code, 1..8
  int64_t group_size = kDefaultGroupSize;  ///< elements that share a minimum and a step; a positive multiple of 32
  bool stochastic = true;                  ///< unbiased stochastic rounding; false: to nearest, which biases gradients
};

}  // namespace actnn
