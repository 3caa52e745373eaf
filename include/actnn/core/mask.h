#pragma once

#include "actnn/core/host_device.h"
#include "actnn/core/scalar_types.h"

/// \file
/// ReLU of one element and where its gradient passes. Vector code works on the bits and must give the same.

namespace actnn {

/// x < 0 ? 0 : x. NaN and -0 stay.
template <class Element>
ACTNN_HOST_DEVICE constexpr Element rectified(Element x) {
  return to_float(x) < 0.0F ? Element{} : x;
}

/// Whether the gradient of ReLU passes: not (x <= 0), so at NaN too.
template <class Element>
ACTNN_HOST_DEVICE constexpr bool gradient_passes(Element x) {
  return !(to_float(x) <= 0.0F);
}

}  // namespace actnn
