#include "actnn/cuda/max_pool.h"
#include "src/cuda/channel_packet.cuh"
#include "src/cuda/launch.cuh"
#include "src/cuda/pixel_tiles.cuh"
#include "src/cuda/pooling.cuh"

namespace actnn::cuda {
namespace {

/// A thread sums up the gradients of a square of input pixels: their windows are largely the same ones, so that
/// gradients and positions are loaded once for all.
constexpr int kSquare = 2;

/// What a thread reads and sums up.
template <class Packets_>
struct Square {
  using Packets = Packets_;
  using Element = typename Packets::Element;

  const Element* gradients;
  const uint8_t* positions;
  typename Packets::Offsets offsets;  ///< in both
  typename Packets::Sum sums[kSquare][kSquare];
};

/// Windows that halve the image, in the order of the output: stride 2, no dilation. Those of square number s along an
/// axis are s + kFirst to s + kLast.
template <int kernel_size, int padding>
struct Halving {
  static constexpr int kKernel = kernel_size;
  static constexpr int kFirst = -((kernel_size - 1 - padding) / 2);
  static constexpr int kLast = (padding + 1) / 2;
  static constexpr int kCount = kLast - kFirst + 1;

  static bool applies(const WindowAxis<int>& axis) {
    return axis.kernel == kernel_size && axis.padding == padding && axis.stride == 2 && axis.dilation == 1;
  }

  /// Which row of window s + `window` is row `k` of square s; outside [0, kKernel) if none.
  __device__ static constexpr int window_row(int window, int k) { return k + padding - 2 * window; }

  /// Loads all windows before it adds any.
  template <class Square>
  __device__ void add(const Pooling& pooling, const PixelPlace& place, Square& square) const {
    using Packets = typename Square::Packets;
    typename Packets::Channels gradients[kCount][kCount];
    typename Packets::Positions positions[kCount][kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int y = place.row + kFirst + i;
        const int x = place.column + kFirst + j;
        const int near_y = min(max(y, 0), pooling.rows.output - 1);
        const int near_x = min(max(x, 0), pooling.columns.output - 1);
        const int pixel = pooling.output.pixel(near_y, near_x);
        gradients[i][j] = Packets::load(square.gradients, square.offsets, pixel);
        positions[i][j] = Packets::load(square.positions, square.offsets, pixel);
        if (y != near_y || x != near_x) {
          gradients[i][j] = {};  // there is no such window; adding zeros changes nothing
        }
      }
    }
#pragma unroll
    for (int window = 0; window < kCount * kCount; ++window) {
      const int i = window / kCount;
      const int j = window % kCount;
#pragma unroll
      for (int k = 0; k < kSquare * kSquare; ++k) {
        const int row = window_row(kFirst + i, k / kSquare);
        const int column = window_row(kFirst + j, k % kSquare);
        if (row >= 0 && row < kKernel && column >= 0 && column < kKernel) {
          square.sums[k / kSquare][k % kSquare].template add<kKernel * kKernel>(gradients[i][j], positions[i][j],
                                                                                row * kKernel + column);
        }
      }
    }
  }
};

/// Windows of any kind, in the order of the output.
struct AnyWindows {
  template <class Square>
  __device__ void add(const Pooling& pooling, const PixelPlace& place, Square& square) const {
    using Packets = typename Square::Packets;
    const WindowAxis<int>& rows = pooling.rows;
    const WindowAxis<int>& columns = pooling.columns;
    const int row = place.row * kSquare;
    const int column = place.column * kSquare;
    const int first_x = columns.first_output(column);
    const int last_x = columns.last_output(column + kSquare - 1);
    const int last_y = rows.last_output(row + kSquare - 1);
    for (int y = rows.first_output(row); y <= last_y; ++y) {
      const int window_rows[kSquare] = {rows.offset(y, row), rows.offset(y, row + 1)};
      for (int x = first_x; x <= last_x; ++x) {
        const int window_columns[kSquare] = {columns.offset(x, column), columns.offset(x, column + 1)};
        const int pixel = pooling.output.pixel(y, x);
        const typename Packets::Channels gradients = Packets::load(square.gradients, square.offsets, pixel);
        const typename Packets::Positions positions = Packets::load(square.positions, square.offsets, pixel);
#pragma unroll
        for (int k = 0; k < kSquare * kSquare; ++k) {
          const int window_row = window_rows[k / kSquare];
          const int window_column = window_columns[k % kSquare];
          if (window_row >= 0 && window_column >= 0) {
            square.sums[k / kSquare][k % kSquare].add(gradients, positions,
                                                      window_row * columns.kernel + window_column);
          }
        }
      }
    }
  }
};

/// Writes a square. `pairs`: the two elements of a row at once.
template <class Square>
__device__ void store_square(const Pooling& pooling, const PixelPlace& place, const Square& square,
                             typename Square::Element* grad_input, const Pooling::Packet& packet, bool pairs) {
  using Packets = typename Square::Packets;
  typename Square::Element* first = pooling.first(grad_input, pooling.input, packet);
  const auto to = pooling.offsets<typename Packets::Offsets>(pooling.input, packet);
#pragma unroll
  for (int k = 0; k < kSquare; ++k) {
    const int row = place.row * kSquare + k;
    const int column = place.column * kSquare;
    if (row < pooling.rows.input) {
      const int pixel = pooling.input.pixel(row, column);
      if constexpr (Packets::kGathers) {
        if (pairs) {
          Packets::store_pair(square.sums[k][0].rounded(), square.sums[k][1].rounded(), first, to, pixel);
          continue;
        }
      }
      Packets::store(square.sums[k][0].rounded(), first, to, pixel);
      if (column + 1 < pooling.columns.input) {
        Packets::store(square.sums[k][1].rounded(), first, to, pixel + pooling.input.column);
      }
    }
  }
}

/// One square of input pixels a thread, of one packet of channels.
template <class Packets, class Windows>
__global__ void __launch_bounds__(kBlockThreads, kPoolBackwardBlocks)
    backward_kernel(Pooling pooling, PixelTiles tiles, Windows windows, const typename Packets::Element* grad_output,
                    const uint8_t* positions, typename Packets::Element* grad_input, bool pairs) {
  const PixelPlace place = tiles.place();
  const Pooling::Packet packet = pooling.packet(place, Packets::kElements);
  if (place.row * kSquare >= pooling.rows.input || place.column * kSquare >= pooling.columns.input ||
      !pooling.exists(packet)) {
    return;
  }
  Square<Packets> square{pooling.first(grad_output, pooling.output, packet),
                         pooling.first(positions, pooling.output, packet),
                         pooling.offsets<typename Packets::Offsets>(pooling.output, packet),
                         {}};
  windows.add(pooling, place, square);
  store_square(pooling, place, square, grad_input, packet, pairs);
}

template <class Packets>
cudaError_t launch_backward(const MaxPool2dShape& shape, const typename Packets::Element* grad_output,
                            const uint8_t* positions, typename Packets::Element* grad_input, cudaStream_t stream) {
  const Pooling pooling(shape);
  const PixelTiles tiles =
      pooling.tiles(ceil_div(shape.input_height, kSquare), ceil_div(shape.input_width, kSquare), Packets::kElements);
  const bool pairs = !shape.channels_last && shape.input_width % kSquare == 0 &&
                     are_aligned(kSquare * sizeof(typename Packets::Element), grad_input);
  const auto launch = [&](const auto& windows) {
    backward_kernel<Packets><<<tiles.blocks(), tiles.threads(), 0, stream>>>(pooling, tiles, windows, grad_output,
                                                                             positions, grad_input, pairs);
    return cudaGetLastError();
  };
  const auto halves = [&](const auto& windows) {
    return windows.applies(pooling.rows) && windows.applies(pooling.columns) &&
           (!Packets::kGathers || !shape.channels_last);
  };
  if (const Halving<2, 0> windows; halves(windows)) {
    return launch(windows);
  }
  if (const Halving<3, 0> windows; halves(windows)) {
    return launch(windows);
  }
  if (const Halving<3, 1> windows; halves(windows)) {
    return launch(windows);
  }
  return launch(AnyWindows{});
}

/// What `Pooling` does not fit: one input element a thread.
template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    backward_element_kernel(MaxPool2dShape s, int64_t count, const Element* grad_output, const uint8_t* positions,
                            Element* grad_input) {
  const int64_t index = thread_index();
  if (index >= count) {
    return;
  }
  const ElementPlace place(s, index, s.input_height, s.input_width);
  const int bytes = position_bytes(s.kernel_height, s.kernel_width);
  const WindowAxis<int64_t> rows = window_rows(s);
  const WindowAxis<int64_t> columns = window_columns(s);
  Element sum{};
  for (int64_t y = rows.first_output(place.row); y <= rows.last_output(place.row); ++y) {
    for (int64_t x = columns.first_output(place.column); x <= columns.last_output(place.column); ++x) {
      const int64_t output = place.neighbour(s, s.output_height, s.output_width, y, x);
      const int64_t position = load_position(positions, output, bytes);
      if (position / s.kernel_width == rows.offset(y, place.row) &&
          position % s.kernel_width == columns.offset(x, place.column)) {
        sum = add_rounded(sum, grad_output[output]);
      }
    }
  }
  grad_input[index] = sum;
}

}  // namespace

cudaError_t max_pool2d_backward(const MaxPool2dShape& shape, ElementType type, const void* grad_output,
                                const uint8_t* positions, void* grad_input, cudaStream_t stream) {
  const int64_t count = shape.batch * shape.channels * shape.input_height * shape.input_width;
  if (count == 0) {
    return cudaSuccess;
  }
  return with_element_type(type, [&]<class Element>(Element /*tag*/) {
    const auto* from = static_cast<const Element*>(grad_output);
    auto* to = static_cast<Element*>(grad_input);
    if (!Pooling::fits(shape)) {
      backward_element_kernel<<<blocks_for(count, kBlockThreads), kBlockThreads, 0, stream>>>(shape, count, from,
                                                                                              positions, to);
      return cudaGetLastError();
    }
    return has_vectors<Element>(shape, grad_output, grad_input, positions)
               ? launch_backward<Packets<Element, false>>(shape, from, positions, to, stream)
               : launch_backward<Packets<Element, true>>(shape, from, positions, to, stream);
  });
}

}  // namespace actnn::cuda
