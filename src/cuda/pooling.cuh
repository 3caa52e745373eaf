#pragma once

#include <cstdint>

#include "actnn/core/max_pool.h"
#include "src/cuda/pixel_tiles.cuh"
#include "src/cuda/vector.cuh"

/// \file
/// A pooling problem as the kernels see it. Both memory formats are one: a contiguous tensor is a single image, of
/// which every plane is a channel.

namespace actnn::cuda {

/// Blocks on a multiprocessor: for more, the compiler would save registers by loading a window in parts.
inline constexpr int kPoolBlocks = 5;
inline constexpr int kPoolBackwardBlocks = 4;

/// Distances in a dense tensor, in elements.
struct PixelStrides {
  int64_t image;
  int channel;
  int row;
  int column;

  PixelStrides(const MaxPool2dShape& s, int64_t height, int64_t width)
      : image(s.channels_last ? height * width * s.channels : 0),
        channel(static_cast<int>(s.channels_last ? 1 : height * width)),
        row(static_cast<int>(s.channels_last ? width * s.channels : width)),
        column(static_cast<int>(s.channels_last ? s.channels : 1)) {}

  __device__ int pixel(int y, int x) const { return y * row + x * column; }
};

/// A problem in 32-bit numbers.
struct Pooling {
  WindowAxis<int> rows;
  WindowAxis<int> columns;
  PixelStrides input;
  PixelStrides output;
  int images;
  int channels;
  bool channels_last;

  explicit Pooling(const MaxPool2dShape& s)
      : rows(window_rows<int>(s)),
        columns(window_columns<int>(s)),
        input(s, s.input_height, s.input_width),
        output(s, s.output_height, s.output_width),
        images(static_cast<int>(s.channels_last ? s.batch : 1)),
        channels(static_cast<int>(s.channels_last ? s.channels : s.batch * s.channels)),
        channels_last(s.channels_last) {}

  /// Whether 32-bit numbers suffice for everything but the offset of an image or plane, and one byte for a position.
  static bool fits(const MaxPool2dShape& s) {
    // Four channels of a packet may be four planes.
    constexpr int64_t kLimit = int64_t{1} << 29;
    const int64_t neighbours = s.channels_last ? s.channels : 1;
    const auto axis_fits = [](const WindowAxis<int64_t>& axis) {
      return axis.input + axis.kernel * axis.dilation + 2 * axis.padding + axis.stride < kLimit;
    };
    return position_bytes(s.kernel_height, s.kernel_width) == 1 && axis_fits(window_rows(s)) &&
           axis_fits(window_columns(s)) && s.input_height * s.input_width * neighbours < kLimit &&
           s.output_height * s.output_width * neighbours < kLimit && s.batch * s.channels / neighbours < kLimit;
  }

  /// Tiles of images of `height` x `width` pixels (or groups of pixels) and packets of `packet` channels.
  PixelTiles tiles(int64_t height, int64_t width, int packet) const {
    const int64_t packets = ceil_div(int64_t{channels}, packet);
    return PixelTiles(channels_last ? PixelExtents{.inner = packets, .columns = width, .rows = height, .outer = images}
                                    : PixelExtents{.inner = 1, .columns = width, .rows = height, .outer = packets});
  }

  /// A thread's packet, by its first channel.
  struct Packet {
    int image;
    int channel;
  };

  __device__ Packet packet(const PixelPlace& place, int elements) const {
    return channels_last ? Packet{place.outer, place.inner * elements} : Packet{0, place.outer * elements};
  }

  __device__ bool exists(const Packet& packet) const { return packet.image < images && packet.channel < channels; }

  /// The packet's first channel at pixel 0 of a tensor of these strides.
  template <class T>
  __device__ T* first(T* tensor, const PixelStrides& strides, const Packet& packet) const {
    T* first = tensor + packet.image * strides.image + packet.channel * int64_t{strides.channel};
    // Keeps the compiler from adding up the 64-bit parts of every address anew.
    asm("" : "+l"(first));
    return first;
  }

  /// `Offsets` (channel_packet.cuh) of its channels from there on.
  template <class Offsets>
  __device__ Offsets offsets(const PixelStrides& strides, const Packet& packet) const {
    return Offsets(strides.channel, channels - packet.channel);
  }
};

/// Whether a packet can be a vector of neighbouring channels.
template <class Element>
bool has_vectors(const MaxPool2dShape& s, const void* input, const void* output, const uint8_t* positions) {
  return s.channels_last && s.channels % kVectorElements<Element> == 0 && are_aligned(sizeof(Vector), input, output) &&
         are_aligned(kVectorElements<Element>, positions);
}

/// One element of a tensor with `height` x `width` pixels, for problems of any size. A plane of a contiguous tensor is
/// an image with one channel.
struct ElementPlace {
  int64_t image;
  int64_t row;
  int64_t column;
  int64_t channel;

  __device__ ElementPlace(const MaxPool2dShape& s, int64_t index, int64_t height, int64_t width) {
    const int64_t neighbours = s.channels_last ? s.channels : 1;
    channel = index % neighbours;
    index /= neighbours;
    column = index % width;
    index /= width;
    row = index % height;
    image = index / height;
  }

  /// The element of the same image and channel in a tensor of `height` x `width` pixels.
  __device__ int64_t neighbour(const MaxPool2dShape& s, int64_t height, int64_t width, int64_t y, int64_t x) const {
    return ((image * height + y) * width + x) * (s.channels_last ? s.channels : 1) + channel;
  }
};

/// Positions of any size, byte by byte: they may begin anywhere.
__device__ inline int64_t load_position(const uint8_t* positions, int64_t index, int bytes) {
  int64_t position = 0;
  for (int i = 0; i < bytes; ++i) {
    position |= int64_t{positions[index * bytes + i]} << (8 * i);
  }
  return position;
}

__device__ inline void store_position(uint8_t* positions, int64_t index, int bytes, int64_t position) {
  for (int i = 0; i < bytes; ++i) {
    positions[index * bytes + i] = static_cast<uint8_t>(position >> (8 * i));
  }
}

}  // namespace actnn::cuda
