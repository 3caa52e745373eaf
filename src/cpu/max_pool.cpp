#include "actnn/cpu/max_pool.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace actnn::cpu {
namespace {

/// Where a window meets the input: rows (or columns) `first, first + dilation, ... < end`, of which the first is number
/// `skipped` of the window.
struct Span {
  int64_t first;
  int64_t end;
  int64_t skipped;
};

Span span(int64_t output, int64_t stride, int64_t padding, int64_t dilation, int64_t kernel, int64_t input) {
  const int64_t start = output * stride - padding;
  const int64_t skipped = start < 0 ? (-start + dilation - 1) / dilation : 0;
  return {start + skipped * dilation, std::min(start + (kernel - 1) * dilation + 1, input), skipped};
}

Span row_span(const MaxPool2dShape& s, int64_t y) {
  return span(y, s.stride_height, s.padding_height, s.dilation_height, s.kernel_height, s.input_height);
}

Span column_span(const MaxPool2dShape& s, int64_t x) {
  return span(x, s.stride_width, s.padding_width, s.dilation_width, s.kernel_width, s.input_width);
}

template <class Position>
Position load_position(const uint8_t* positions, int64_t index) {
  Position position;
  std::memcpy(&position, positions + index * static_cast<int64_t>(sizeof position), sizeof position);
  return position;
}

template <class Position>
void store_position(uint8_t* positions, int64_t index, int64_t value) {
  const auto position = static_cast<Position>(value);
  std::memcpy(positions + index * static_cast<int64_t>(sizeof position), &position, sizeof position);
}

/// Torch's comparison: strictly greater or NaN takes over.
bool takes_over(float value, float maximum) { return value > maximum || is_nan(value); }

/// Visits the window of output (y, x): body(input row, input column, position).
template <class Body>
void for_window(const MaxPool2dShape& s, int64_t y, int64_t x, Body&& body) {
  const Span rows = row_span(s, y);
  const Span columns = column_span(s, x);
  int64_t window_row = rows.skipped;
  for (int64_t row = rows.first; row < rows.end; row += s.dilation_height, ++window_row) {
    int64_t position = window_row * s.kernel_width + columns.skipped;
    for (int64_t column = columns.first; column < columns.end; column += s.dilation_width, ++position) {
      body(row, column, position);
    }
  }
}

template <class Element, class Position>
void pool_planes(const MaxPool2dShape& s, const Element* input, Element* output, uint8_t* positions, int64_t first,
                 int64_t last) {
  for (int64_t plane = first; plane < last; ++plane) {
    const Element* in = input + plane * s.input_height * s.input_width;
    int64_t index = plane * s.output_height * s.output_width;
    for (int64_t y = 0; y < s.output_height; ++y) {
      for (int64_t x = 0; x < s.output_width; ++x, ++index) {
        float maximum = 0.0F;
        int64_t best = -1;
        Element best_element{};
        for_window(s, y, x, [&](int64_t row, int64_t column, int64_t position) {
          const Element element = in[row * s.input_width + column];
          const float value = to_float(element);
          if (best < 0 || takes_over(value, maximum)) {
            maximum = value;
            best = position;
            best_element = element;
          }
        });
        output[index] = best_element;
        store_position<Position>(positions, index, best);
      }
    }
  }
}

/// One output row (n, y) at a time; the innermost loops run over the channels of one pixel.
template <class Element, class Position>
void pool_rows(const MaxPool2dShape& s, const Element* input, Element* output, uint8_t* positions, int64_t first,
               int64_t last) {
  std::vector<float> maxima(static_cast<size_t>(s.channels));
  std::vector<Position> best(static_cast<size_t>(s.channels));
  for (int64_t item = first; item < last; ++item) {
    const Element* sample = input + item / s.output_height * s.input_height * s.input_width * s.channels;
    const int64_t y = item % s.output_height;
    for (int64_t x = 0; x < s.output_width; ++x) {
      const int64_t pixel = (item * s.output_width + x) * s.channels;
      Element* out = output + pixel;
      bool begun = false;
      for_window(s, y, x, [&](int64_t row, int64_t column, int64_t position) {
        const Element* in = sample + (row * s.input_width + column) * s.channels;
        const auto window_position = static_cast<Position>(position);
        for (int64_t c = 0; c < s.channels; ++c) {
          const float value = to_float(in[c]);
          if (!begun || takes_over(value, maxima[c])) {
            maxima[c] = value;
            best[c] = window_position;
            out[c] = in[c];
          }
        }
        begun = true;
      });
      std::memcpy(positions + pixel * static_cast<int64_t>(sizeof(Position)), best.data(),
                  best.size() * sizeof(Position));
    }
  }
}

template <class Element>
void add(Element* sum, Element value) {
  store_rounded(to_float(*sum) + to_float(value), sum);
}

/// The input row and column that a position stands for.
struct Pixel {
  int64_t row;
  int64_t column;
};

Pixel pixel_of(const MaxPool2dShape& s, int64_t y, int64_t x, int64_t position) {
  return {y * s.stride_height - s.padding_height + position / s.kernel_width * s.dilation_height,
          x * s.stride_width - s.padding_width + position % s.kernel_width * s.dilation_width};
}

template <class Element, class Position>
void scatter_planes(const MaxPool2dShape& s, const Element* grad_output, const uint8_t* positions, Element* grad_input,
                    int64_t first, int64_t last) {
  for (int64_t plane = first; plane < last; ++plane) {
    Element* grad = grad_input + plane * s.input_height * s.input_width;
    int64_t index = plane * s.output_height * s.output_width;
    for (int64_t y = 0; y < s.output_height; ++y) {
      for (int64_t x = 0; x < s.output_width; ++x, ++index) {
        const Pixel pixel = pixel_of(s, y, x, load_position<Position>(positions, index));
        add(&grad[pixel.row * s.input_width + pixel.column], grad_output[index]);
      }
    }
  }
}

template <class Element, class Position>
void scatter_samples(const MaxPool2dShape& s, const Element* grad_output, const uint8_t* positions, Element* grad_input,
                     int64_t first, int64_t last) {
  for (int64_t sample = first; sample < last; ++sample) {
    Element* grad = grad_input + sample * s.input_height * s.input_width * s.channels;
    int64_t index = sample * s.output_height * s.output_width * s.channels;
    for (int64_t y = 0; y < s.output_height; ++y) {
      for (int64_t x = 0; x < s.output_width; ++x) {
        for (int64_t c = 0; c < s.channels; ++c, ++index) {
          const Pixel pixel = pixel_of(s, y, x, load_position<Position>(positions, index));
          add(&grad[(pixel.row * s.input_width + pixel.column) * s.channels + c], grad_output[index]);
        }
      }
    }
  }
}

/// Calls `body` with a value of the unsigned type that holds a position.
template <class Body>
void with_position_type(const MaxPool2dShape& s, Body&& body) {
  switch (position_bytes(s.kernel_height, s.kernel_width)) {
    case 1:
      return body(uint8_t{});
    case 2:
      return body(uint16_t{});
    default:
      return body(uint32_t{});
  }
}

}  // namespace

int64_t max_pool2d_items(const MaxPool2dShape& shape) {
  return shape.batch * (shape.channels_last ? shape.output_height : shape.channels);
}

void max_pool2d(const MaxPool2dShape& shape, ElementType type, const void* input, void* output, uint8_t* positions,
                int64_t first, int64_t last) {
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    with_position_type(shape, [&]<class Position>(Position /*tag*/) {
      const auto pool = shape.channels_last ? pool_rows<Element, Position> : pool_planes<Element, Position>;
      pool(shape, static_cast<const Element*>(input), static_cast<Element*>(output), positions, first, last);
    });
  });
}

int64_t max_pool2d_backward_items(const MaxPool2dShape& shape) {
  return shape.batch * (shape.channels_last ? 1 : shape.channels);
}

void max_pool2d_backward(const MaxPool2dShape& shape, ElementType type, const void* grad_output,
                         const uint8_t* positions, void* grad_input, int64_t first, int64_t last) {
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    with_position_type(shape, [&]<class Position>(Position /*tag*/) {
      const auto scatter = shape.channels_last ? scatter_samples<Element, Position> : scatter_planes<Element, Position>;
      scatter(shape, static_cast<const Element*>(grad_output), positions, static_cast<Element*>(grad_input), first,
              last);
    });
  });
}

void max_pool2d_indices(const MaxPool2dShape& shape, const uint8_t* positions, int64_t* indices, int64_t first,
                        int64_t last) {
  with_position_type(shape, [&]<class Position>(Position /*tag*/) {
    const int64_t inner = shape.channels_last ? shape.channels : 1;
    const int64_t pixels = shape.channels_last ? shape.output_width : shape.output_height * shape.output_width;
    for (int64_t index = first * pixels * inner; index < last * pixels * inner; ++index) {
      const int64_t pixel = index / inner;
      const int64_t x = pixel % shape.output_width;
      const int64_t y = pixel / shape.output_width % shape.output_height;
      const Pixel maximum = pixel_of(shape, y, x, load_position<Position>(positions, index));
      indices[index] = maximum.row * shape.input_width + maximum.column;
    }
  });
}

}  // namespace actnn::cpu
