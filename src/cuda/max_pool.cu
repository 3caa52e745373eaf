#include "actnn/cuda/max_pool.h"
#include "src/cuda/channel_packet.cuh"
#include "src/cuda/launch.cuh"
#include "src/cuda/pixel_tiles.cuh"
#include "src/cuda/pooling.cuh"

namespace actnn::cuda {
namespace {

/// A square window of `kKernel` rows that lies inside the input, loaded whole before it is compared.
template <class Packets, int kKernel>
__device__ typename Packets::Maximum square_maximum(const Pooling& pooling, const PixelPlace& place,
                                                    const typename Packets::Element* input,
                                                    const typename Packets::Offsets& offsets) {
  const int first = pooling.input.pixel(pooling.rows.row(place.row, 0), pooling.columns.row(place.column, 0));
  const int row_step = pooling.input.row * pooling.rows.dilation;
  const int column_step = Packets::kGathers ? 1 : pooling.input.column * pooling.columns.dilation;
  typename Packets::Channels values[kKernel][kKernel];
#pragma unroll
  for (int i = 0; i < kKernel; ++i) {
#pragma unroll
    for (int j = 0; j < kKernel; ++j) {
      values[i][j] = Packets::load(input, offsets, first + i * row_step, j * column_step);
    }
  }
  typename Packets::Maximum maximum(0);
#pragma unroll
  for (int i = 0; i < kKernel; ++i) {
#pragma unroll
    for (int j = 0; j < kKernel; ++j) {
      maximum.visit(values[i][j], i * kKernel + j);
    }
  }
  return maximum;
}

/// Any window.
template <class Packets>
__device__ typename Packets::Maximum window_maximum(const Pooling& pooling, const PixelPlace& place,
                                                    const typename Packets::Element* input,
                                                    const typename Packets::Offsets& offsets) {
  const WindowSpan<int> rows = pooling.rows.span(place.row);
  const WindowSpan<int> columns = pooling.columns.span(place.column);
  int row_position = rows.skipped * pooling.columns.kernel + columns.skipped;
  typename Packets::Maximum maximum(row_position);
  for (int row = rows.first; row < rows.end; row += pooling.rows.dilation) {
    int position = row_position;
    for (int column = columns.first; column < columns.end; column += pooling.columns.dilation, ++position) {
      maximum.visit(Packets::load(input, offsets, pooling.input.pixel(row, column)), position);
    }
    row_position += pooling.columns.kernel;
  }
  return maximum;
}

/// One output pixel a thread, of one packet of channels. Most windows of `kKernel` x `kKernel` elements (0: of any
/// size) lie inside the input.
template <class Packets, int kKernel>
__global__ void __launch_bounds__(kBlockThreads, kPoolBlocks)
    pool_kernel(Pooling pooling, PixelTiles tiles, const typename Packets::Element* input,
                typename Packets::Element* output, uint8_t* positions) {
  const PixelPlace place = tiles.place();
  const Pooling::Packet packet = pooling.packet(place, Packets::kElements);
  if (place.row >= pooling.rows.output || place.column >= pooling.columns.output || !pooling.exists(packet)) {
    return;
  }
  const auto from = pooling.offsets<typename Packets::Offsets>(pooling.input, packet);
  const typename Packets::Element* first = pooling.first(input, pooling.input, packet);
  const typename Packets::Maximum maximum = [&] {
    if constexpr (kKernel > 0) {
      if (pooling.rows.is_inside(place.row) && pooling.columns.is_inside(place.column)) {
        return square_maximum<Packets, kKernel>(pooling, place, first, from);
      }
    }
    return window_maximum<Packets>(pooling, place, first, from);
  }();

  const auto to = pooling.offsets<typename Packets::Offsets>(pooling.output, packet);
  const int pixel = pooling.output.pixel(place.row, place.column);
  Packets::store(maximum.maxima(), pooling.first(output, pooling.output, packet), to, pixel);
  Packets::store(maximum.positions(), pooling.first(positions, pooling.output, packet), to, pixel);
}

template <class Packets>
cudaError_t launch_pool(const MaxPool2dShape& shape, const typename Packets::Element* input,
                        typename Packets::Element* output, uint8_t* positions, cudaStream_t stream) {
  const Pooling pooling(shape);
  const PixelTiles tiles = pooling.tiles(shape.output_height, shape.output_width, Packets::kElements);
  const bool is_square = shape.kernel_height == shape.kernel_width &&
                         (!Packets::kGathers || (!shape.channels_last && shape.dilation_width == 1));
  const auto kernel = is_square && shape.kernel_width == 2   ? pool_kernel<Packets, 2>
                      : is_square && shape.kernel_width == 3 ? pool_kernel<Packets, 3>
                                                             : pool_kernel<Packets, 0>;
  kernel<<<tiles.blocks(), tiles.threads(), 0, stream>>>(pooling, tiles, input, output, positions);
  return cudaGetLastError();
}

/// What `Pooling` does not fit: one output element a thread.
template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    pool_element_kernel(MaxPool2dShape s, int64_t count, const Element* input, Element* output, uint8_t* positions) {
  const int64_t index = thread_index();
  if (index >= count) {
    return;
  }
  const ElementPlace place(s, index, s.output_height, s.output_width);
  const WindowSpan<int64_t> rows = window_rows(s).span(place.row);
  const WindowSpan<int64_t> columns = window_columns(s).span(place.column);
  int64_t row_position = rows.skipped * s.kernel_width + columns.skipped;
  int64_t best = row_position;
  auto maximum = minus_infinity<Element>();
  for (int64_t row = rows.first; row < rows.end; row += s.dilation_height) {
    int64_t position = row_position;
    for (int64_t column = columns.first; column < columns.end; column += s.dilation_width, ++position) {
      const Element element = input[place.neighbour(s, s.input_height, s.input_width, row, column)];
      if (takes_over(to_float(element), to_float(maximum))) {
        maximum = element;
        best = position;
      }
    }
    row_position += s.kernel_width;
  }
  output[index] = maximum;
  store_position(positions, index, position_bytes(s.kernel_height, s.kernel_width), best);
}

/// One position a thread.
__global__ void __launch_bounds__(kBlockThreads) indices_kernel(Pooling pooling, PixelTiles tiles, Divider kernel_width,
                                                                const uint8_t* positions, int64_t* indices) {
  const PixelPlace place = tiles.place();
  const Pooling::Packet packet = pooling.packet(place, 1);
  if (place.row >= pooling.rows.output || place.column >= pooling.columns.output || !pooling.exists(packet)) {
    return;
  }
  const int64_t index = packet.image * pooling.output.image + packet.channel * int64_t{pooling.output.channel} +
                        pooling.output.pixel(place.row, place.column);
  const int position = positions[index];
  const auto window_row = static_cast<int>(kernel_width(position));
  const int row = pooling.rows.row(place.row, window_row);
  const int column = pooling.columns.row(place.column, position - window_row * pooling.columns.kernel);
  indices[index] = row * pooling.columns.input + column;
}

/// The same for what `Pooling` does not fit.
__global__ void __launch_bounds__(kBlockThreads)
    index_element_kernel(MaxPool2dShape s, int64_t count, const uint8_t* positions, int64_t* indices) {
  const int64_t index = thread_index();
  if (index >= count) {
    return;
  }
  const ElementPlace place(s, index, s.output_height, s.output_width);
  const int64_t position = load_position(positions, index, position_bytes(s.kernel_height, s.kernel_width));
  const int64_t row = window_rows(s).row(place.row, position / s.kernel_width);
  indices[index] = row * s.input_width + window_columns(s).row(place.column, position % s.kernel_width);
}

int64_t output_elements(const MaxPool2dShape& s) { return s.batch * s.channels * s.output_height * s.output_width; }

}  // namespace

cudaError_t max_pool2d(const MaxPool2dShape& shape, ElementType type, const void* input, void* output,
                       uint8_t* positions, cudaStream_t stream) {
  const int64_t count = output_elements(shape);
  if (count == 0) {
    return cudaSuccess;
  }
  return with_element_type(type, [&]<class Element>(Element /*tag*/) {
    const auto* from = static_cast<const Element*>(input);
    auto* to = static_cast<Element*>(output);
    if (!Pooling::fits(shape)) {
      pool_element_kernel<<<blocks_for(count, kBlockThreads), kBlockThreads, 0, stream>>>(shape, count, from, to,
                                                                                          positions);
      return cudaGetLastError();
    }
    return has_vectors<Element>(shape, input, output, positions)
               ? launch_pool<Packets<Element, false>>(shape, from, to, positions, stream)
               : launch_pool<Packets<Element, true>>(shape, from, to, positions, stream);
  });
}

cudaError_t max_pool2d_indices(const MaxPool2dShape& shape, const uint8_t* positions, int64_t* indices,
                               cudaStream_t stream) {
  const int64_t count = output_elements(shape);
  if (count == 0) {
    return cudaSuccess;
  }
  if (Pooling::fits(shape)) {
    const Pooling pooling(shape);
    const PixelTiles tiles = pooling.tiles(shape.output_height, shape.output_width, 1);
    const Divider kernel_width(static_cast<uint32_t>(shape.kernel_width));
    indices_kernel<<<tiles.blocks(), tiles.threads(), 0, stream>>>(pooling, tiles, kernel_width, positions, indices);
  } else {
    index_element_kernel<<<blocks_for(count, kBlockThreads), kBlockThreads, 0, stream>>>(shape, count, positions,
                                                                                         indices);
  }
  return cudaGetLastError();
}

}  // namespace actnn::cuda
