#pragma once

#include <cstdint>
#include <limits>

#include "actnn/core/host_device.h"

/// \file
/// The prices by which bits are taken away from elements (samples, or layers x samples), the cheapest first: Chen et
/// al., "ActNN", ICML 2021, section 4.2. Among equal prices that of the first element comes first.

namespace actnn {

/// What the rounding of an element of sensitivity 1 adds to the variance: 1 / (2^bits - 1)^2.
ACTNN_HOST_DEVICE constexpr double rounding_variance(int bits) {
  const double levels = (1 << bits) - 1;
  return 1.0 / (levels * levels);
}

/// A sensitivity as it counts: a negative one as 0, NaN as infinite.
ACTNN_HOST_DEVICE constexpr double counted_sensitivity(double sensitivity) {
  if (sensitivity != sensitivity) {
    return std::numeric_limits<double>::infinity();
  }
  return sensitivity < 0.0 ? 0.0 : sensitivity;
}

/// What `bits` - 1 instead of `bits` adds to the variance of an element of a counted sensitivity. It rises as bits
/// fall, so that an element's bits go one after the other.
ACTNN_HOST_DEVICE constexpr double rise_of_variance(double counted, int bits) {
  return counted * (rounding_variance(bits - 1) - rounding_variance(bits));
}

/// The sensitivity of a sample, in float32: its squared ranges x the layer's factor x the squared norm of the gradient,
/// which counts as 1 while it is unknown (0).
ACTNN_HOST_DEVICE constexpr float sample_sensitivity(float range, float factor, float gradient) {
  return range * factor * (gradient > 0.0F ? gradient : 1.0F);
}

/// The running squared norm of a gradient after the mean `now` of a batch: the first one, then half old and half new.
/// One that is not finite changes nothing.
ACTNN_HOST_DEVICE constexpr float updated_gradient_norm(float before, float now) {
  const bool finite = now - now == 0.0F;
  if (!finite) {
    return before;
  }
  return before > 0.0F ? 0.5F * before + 0.5F * now : now;
}

}  // namespace actnn
