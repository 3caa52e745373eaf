#include "actnn/cuda/column_activation.h"
#include "src/cuda/column_copies.cuh"
#include "src/cuda/column_quantizer.cuh"
#include "src/cuda/row_teams.cuh"
#include "src/cuda/smooth_activation.cuh"

namespace actnn::cuda {
namespace {

/// y beside the packing of x. Rows that do not exist are the last one again, whose result is the same.
template <class Element, ActivationKind kKind, bool kGated>
struct Activated {
  const Element* gate;
  Element* output;

  template <class Place>
  __device__ void operator()(const Place& place, const typename Place::Row (&x)[kRows]) const {
    if (place.channels() == 0) {
      return;
    }
    place.for_each_row(output, [&](int j, const Element* first) {
      const int64_t at = first - output;
      typename Place::Row factor;
      if constexpr (kGated) {
        factor.template load<true>(gate + at);
      }
      typename Place::Row y;
#pragma unroll
      for (int k = 0; k < Place::kChannels; k += 2) {
        float first_y = activate<kKind>(x[j][k]).y;
        float second_y = activate<kKind>(x[j][k + 1]).y;
        if constexpr (kGated) {
          first_y *= factor[k];
          second_y *= factor[k + 1];
        }
        y.set_pair(k, first_y, second_y);
      }
      y.store(output + at);
    });
  }
};

/// Calls `body.operator()<kKind, kGated>()`.
template <class Body>
void with_activation(ActivationKind kind, bool is_gated, Body&& body) {
  with_smooth_activation(kind, [&]<ActivationKind kKind>() {
    is_gated ? body.template operator()<kKind, true>() : body.template operator()<kKind, false>();
  });
}

/// Of a multiprocessor, as many as have the registers.
constexpr int kBlocks = 4;

/// Those that are read besides the copies: the gradient and the gate.
template <bool kGated>
constexpr int kMatrices = kGated ? 2 : 1;

/// What is written. `grad_bias`: the rows of the workspace, one for each part of a strip.
template <class Element>
struct Written {
  Element* output;
  Element* grad_x;
  Element* grad_gate;
  float* grad_bias;
};

/// `source.second_grad` is the gate.
template <class Element, ActivationKind kKind, bool kGated>
__global__ void __launch_bounds__(kUnpackingThreads, kBlocks)
    activate_columns_kernel(const Backward<Element> source, const WarpColumns columns, const StageParts parts,
                            const Written<Element> written) {
  using Copies = ColumnCopies<Element, /*kVectors=*/true, /*kFromX=*/false, /*kBothSides=*/false>;
  using Place = typename Copies::Place;
  using Row = typename Place::Row;
  extern __shared__ uint4 shared[];
  wait_for_kernels_before();
  if (columns.part() >= columns.parts) {
    return;
  }
  typename Copies::Table table;
  Copies copies(source, columns, parts, shared, table, [](int64_t /*channel*/) { return true; });
  Place place(columns, columns.first_channel(), columns.column());
  auto rows = copies.template rows_ahead<kMatrices<kGated>>();
  float sums[Place::kChannels] = {};
  const auto use = [&] {
    Row grad[kRows];
    Row gate[kGated ? kRows : 1];
    Row output[kRows];
    rows.take(0, place, grad);
    if constexpr (kGated) {
      rows.take(1, place, gate);
    }
    float y[kRows][2];
    float dx[kRows][2];
    float dgate[kRows][2];
    copies.for_each_pair(
        place,
        [&](int pair, int i, const SavedOctet& octet) {
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            const ActivatedNumber number = activate<kKind>(octet.copies[j]);
            const float gradient = grad[j][pair + i];
            y[j][i] = number.y;
            dx[j][i] = number.derivative * gradient;
            if constexpr (kGated) {
              const float factor = gate[j][pair + i];
              y[j][i] *= factor;
              dx[j][i] *= factor;
              dgate[j][i] = number.y * gradient;
            }
          }
        },
        [&](int pair) {
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            output[j].set_pair(pair, y[j][0], y[j][1]);
            grad[j].set_pair(pair, dx[j][0], dx[j][1]);
            if constexpr (kGated) {
              gate[j].set_pair(pair, dgate[j][0], dgate[j][1]);
            }
            if (place.has_row(j)) {
              sums[pair] += grad[j][pair];
              sums[pair + 1] += grad[j][pair + 1];
            }
          }
        });
    place.store(grad, written.grad_x);
    if (written.output != nullptr) {
      place.store(output, written.output);
    }
    if constexpr (kGated) {
      if (written.grad_gate != nullptr) {
        place.store(gate, written.grad_gate);
      }
    }
  };
  copies.template visit</*kBackwards=*/false, /*kInStep=*/true>(place, rows, use);

  if (written.grad_bias != nullptr) {
#pragma unroll
    for (int k = 0; k < Place::kChannels; ++k) {
      for (int distance = kWarp / 2; distance >= columns.width(); distance /= 2) {
        sums[k] += __shfl_xor_sync(~0U, sums[k], distance);
      }
      if (lane_index() < columns.width() && k < place.channels()) {
        written.grad_bias[columns.part() * columns.channels + place.channel(k)] = sums[k];
      }
    }
  }
}

WarpColumns columns_of(const ColumnLayout<int64_t>& layout) {
  return warps_of_items(layout.rows, layout.channels, kBlocks * kUnpackingThreads);
}

}  // namespace

cudaError_t activate_and_pack_columns(const ActivateAndPackColumns& arguments, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  with_element_type(arguments.x.type, [&]<class Element>(Element /*tag*/) {
    if constexpr (sizeof(Element) == sizeof(uint16_t)) {
      with_activation(arguments.kind, arguments.gate != nullptr, [&]<ActivationKind kKind, bool kGated>() {
        const Activated<Element, kKind, kGated> besides{static_cast<const Element*>(arguments.gate),
                                                        static_cast<Element*>(arguments.output)};
        error = launch_packing<Element, /*kVectors=*/true>(arguments.x, besides, stream);
      });
    }
  });
  return error;
}

cudaError_t activate_columns_backward(const ActivateColumnsBackward& arguments, cudaStream_t stream) {
  const ColumnLayout<int64_t>& layout = arguments.layout;
  const WarpColumns columns = columns_of(layout);
  cudaError_t error = cudaSuccess;
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    const Backward<Element> source({.packed = arguments.packed,
                                    .layout = layout,
                                    .grad = arguments.grad,
                                    .second_grad = arguments.gate,
                                    .type = arguments.type,
                                    .activation = {}});
    const Written<Element> written{static_cast<Element*>(arguments.output), static_cast<Element*>(arguments.grad_x),
                                   static_cast<Element*>(arguments.grad_gate),
                                   arguments.grad_bias == nullptr ? nullptr : arguments.workspace};
    with_activation(arguments.kind, arguments.gate != nullptr, [&]<ActivationKind kKind, bool kGated>() {
      const StageParts parts(columns, source, RowsAhead<ColumnPlace<Element, true>, kMatrices<kGated>>::kBytes);
      error = launch_warps(activate_columns_kernel<Element, kKind, kGated>, columns, parts, stream, source, columns,
                           parts, written);
    });
  });
  if (error != cudaSuccess || arguments.grad_bias == nullptr) {
    return error;
  }
  return join_column_sums(arguments.workspace, columns.parts, static_cast<int>(layout.channels), 1,
                          &arguments.grad_bias, stream);
}

int64_t column_activation_workspace(const ColumnLayout<int64_t>& layout) {
  return columns_of(layout).parts * layout.channels;
}

}  // namespace actnn::cuda
