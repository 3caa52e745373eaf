#pragma once

#include <cstdint>

#include "actnn/core/host_device.h"
#include "actnn/core/scalar_types.h"

/// \file
/// 2-D max-pooling that keeps the position of the maximum inside its window instead of an 8-byte index: the geometry of
/// windows, which element is the maximum, and how gradients add up. Positions count row by row through the window
/// (row * kernel_width + column) and are stored little-endian.

namespace actnn {

/// One pooling problem. Input and output are dense, both `channels_last` (NHWC) or both contiguous (NCHW).
struct MaxPool2dShape {
  int64_t batch, channels;
  int64_t input_height, input_width;
  int64_t output_height, output_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t padding_height, padding_width;
  int64_t dilation_height, dilation_width;
  bool channels_last;
};

/// Bytes of one position: 1 for windows of up to 256 elements, else 2, else 4.
constexpr int position_bytes(int64_t kernel_height, int64_t kernel_width) {
  const int64_t window = kernel_height * kernel_width;
  return window <= 256 ? 1 : window <= 65536 ? 2 : 4;
}

/// Where a window meets the input along one axis: rows (or columns) `first, first + dilation, ... < end`, of which the
/// first is number `skipped` of the window.
template <class Int>
struct WindowSpan {
  Int first;
  Int end;
  Int skipped;
};

/// Windows along one axis, rows or columns.
template <class Int>
struct WindowAxis {
  Int input;   ///< extent of the input
  Int output;  ///< extent of the output
  Int kernel;
  Int stride;
  Int padding;
  Int dilation;

  /// The row where element `offset` of the window of output row `index` lies; negative or >= `input` in the padding.
  ACTNN_HOST_DEVICE constexpr Int row(Int index, Int offset) const {
    return index * stride - padding + offset * dilation;
  }

  /// Whether the whole window of output row `index` lies in the input.
  ACTNN_HOST_DEVICE constexpr bool is_inside(Int index) const {
    return row(index, 0) >= 0 && row(index, kernel - 1) < input;
  }

  ACTNN_HOST_DEVICE constexpr WindowSpan<Int> span(Int index) const {
    const Int start = row(index, 0);
    const Int skipped = start < 0 ? (-start + dilation - 1) / dilation : 0;
    const Int end = row(index, kernel - 1) + 1;
    return {start + skipped * dilation, end < input ? end : input, skipped};
  }

  /// The first and the last output row whose windows can have an element in `row` of the input.
  ACTNN_HOST_DEVICE constexpr Int first_output(Int row) const {
    const Int before = row + padding - (kernel - 1) * dilation;
    return before <= 0 ? 0 : (before + stride - 1) / stride;
  }
  ACTNN_HOST_DEVICE constexpr Int last_output(Int row) const {
    const Int last = (row + padding) / stride;
    return last < output ? last : output - 1;
  }

  /// Which element of the window of output row `index` lies in `input_row`; negative if none.
  ACTNN_HOST_DEVICE constexpr Int offset(Int index, Int input_row) const {
    const Int distance = input_row - row(index, 0);
    if (distance < 0 || dilation == 1) {
      return distance < kernel ? distance : -1;
    }
    return distance % dilation == 0 && distance / dilation < kernel ? distance / dilation : -1;
  }
};

template <class Int = int64_t>
constexpr WindowAxis<Int> window_rows(const MaxPool2dShape& s) {
  return {static_cast<Int>(s.input_height),  static_cast<Int>(s.output_height),  static_cast<Int>(s.kernel_height),
          static_cast<Int>(s.stride_height), static_cast<Int>(s.padding_height), static_cast<Int>(s.dilation_height)};
}

template <class Int = int64_t>
constexpr WindowAxis<Int> window_columns(const MaxPool2dShape& s) {
  return {static_cast<Int>(s.input_width),  static_cast<Int>(s.output_width),  static_cast<Int>(s.kernel_width),
          static_cast<Int>(s.stride_width), static_cast<Int>(s.padding_width), static_cast<Int>(s.dilation_width)};
}

/// Torch's comparison: strictly greater or NaN takes over, so that the maximum is the first of equal elements and the
/// last of several NaNs. A window begins with minus infinity at its first position inside or beyond the input
/// (`WindowSpan::skipped` of both axes), which is the result where dilation lets it miss the input altogether; no
/// gradient flows then.
ACTNN_HOST_DEVICE constexpr bool takes_over(float value, float maximum) { return value > maximum || value != value; }

template <class Element>
ACTNN_HOST_DEVICE constexpr Element minus_infinity() {
  Element element;
  store_rounded(-float_of(kInfinityFloat32), &element);
  return element;
}

/// sum + value in the element type, as torch's CPU kernel adds gradients; a NaN becomes the canonical one.
template <class Element>
ACTNN_HOST_DEVICE constexpr Element add_rounded(Element sum, Element value) {
  Element rounded;
  store_rounded(with_canonical_nan(to_float(sum) + to_float(value)), &rounded);
  return rounded;
}

}  // namespace actnn
