#pragma once

#include <cstdint>

#include "actnn/core/scalar_types.h"

/// \file
/// Mean and variance of a part's rows in one pass: sums of distances, and of their squares, from the first row's
/// element. In double precision nothing is lost unless that element is millions of deviations away from the mean.

namespace actnn::cpu {

/// From where a channel's distances count: its first element, unless that is infinite or NaN.
inline float moments_origin(float first) { return is_finite(first) ? first : 0.0F; }

/// Turns the sums of `count` elements' distances and of their squares into mean and sum of squared distances from it.
inline void finish_moments(float origin, int64_t count, double& mean, double& squares) {
  const double distance = mean / static_cast<double>(count);
  squares -= mean * distance;
  mean = double{origin} + distance;
}

}  // namespace actnn::cpu
