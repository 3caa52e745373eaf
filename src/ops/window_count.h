#pragma once

#include <cstdint>

namespace actnn {

/// A window that moves along one dimension of an input.
template <class Int>
struct SlidingWindow {
  Int kernel_size;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
  bool ceil_mode = false;  ///< the last window may end outside of the padded input
};

/// How many places the window takes in an input of this extent, as torch's convolutions and pools count them; 0 if it
/// does not fit.
template <class Int>
Int window_count(const Int& input, const SlidingWindow<Int>& window) {
  const Int reach = (window.kernel_size - 1) * window.dilation;
  const Int room = input + (2 * window.padding - 1 + (window.ceil_mode ? window.stride - 1 : 0)) - reach;
  // Not a division of a negative number, which rounds up.
  if (room < 0) {
    return Int(0);
  }
  Int count = room / window.stride + 1;
  // In ceil mode the last window must begin inside the input or its left padding.
  if (window.ceil_mode && (count - 1) * window.stride >= input + window.padding) {
    count = count - 1;
  }
  return count;
}

}  // namespace actnn
