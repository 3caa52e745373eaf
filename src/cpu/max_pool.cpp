#include "actnn/cpu/max_pool.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace actnn::cpu {
namespace {

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

/// The window of one output element.
struct Window {
  WindowSpan<int64_t> rows;
  WindowSpan<int64_t> columns;
  int64_t kernel_width;

  Window(const MaxPool2dShape& s, int64_t y, int64_t x)
      : rows(window_rows(s).span(y)), columns(window_columns(s).span(x)), kernel_width(s.kernel_width) {}

  /// Of the first element that is not in the padding above or to the left.
  int64_t first_position() const { return rows.skipped * kernel_width + columns.skipped; }
};

/// Visits the elements of a window that lie in the input: body(input row, input column, position).
template <class Body>
void for_window(const MaxPool2dShape& s, const Window& window, Body&& body) {
  int64_t row_position = window.first_position();
  for (int64_t row = window.rows.first; row < window.rows.end; row += s.dilation_height) {
    int64_t position = row_position;
    for (int64_t column = window.columns.first; column < window.columns.end; column += s.dilation_width, ++position) {
      body(row, column, position);
    }
    row_position += window.kernel_width;
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
        const Window window(s, y, x);
        auto best_element = minus_infinity<Element>();
        float maximum = to_float(best_element);
        int64_t best = window.first_position();
        for_window(s, window, [&](int64_t row, int64_t column, int64_t position) {
          const Element element = in[row * s.input_width + column];
          const float value = to_float(element);
          if (takes_over(value, maximum)) {
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
      const Window window(s, y, x);
      std::fill_n(out, s.channels, minus_infinity<Element>());
      std::fill(maxima.begin(), maxima.end(), to_float(minus_infinity<Element>()));
      std::fill(best.begin(), best.end(), static_cast<Position>(window.first_position()));
      for_window(s, window, [&](int64_t row, int64_t column, int64_t position) {
        const Element* in = sample + (row * s.input_width + column) * s.channels;
        const auto window_position = static_cast<Position>(position);
        for (int64_t c = 0; c < s.channels; ++c) {
          const float value = to_float(in[c]);
          if (takes_over(value, maxima[c])) {
            maxima[c] = value;
            best[c] = window_position;
            out[c] = in[c];
          }
        }
      });
      std::memcpy(positions + pixel * static_cast<int64_t>(sizeof(Position)), best.data(),
                  best.size() * sizeof(Position));
    }
  }
}

/// The input row and column that a position stands for.
struct Pixel {
  int64_t row;
  int64_t column;
};

Pixel pixel_of(const MaxPool2dShape& s, int64_t y, int64_t x, int64_t position) {
  return {window_rows(s).row(y, position / s.kernel_width), window_columns(s).row(x, position % s.kernel_width)};
}

/// Whether there is an element: a window that misses the input has its position outside, and so may bytes that no
/// forward pass wrote.
bool is_inside(const MaxPool2dShape& s, const Pixel& pixel) {
  return pixel.row >= 0 && pixel.row < s.input_height && pixel.column >= 0 && pixel.column < s.input_width;
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
        if (is_inside(s, pixel)) {
          Element& sum = grad[pixel.row * s.input_width + pixel.column];
          sum = add_rounded(sum, grad_output[index]);
        }
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
          if (is_inside(s, pixel)) {
            Element& sum = grad[(pixel.row * s.input_width + pixel.column) * s.channels + c];
            sum = add_rounded(sum, grad_output[index]);
          }
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
