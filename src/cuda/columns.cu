#include "actnn/cuda/columns.h"
#include "src/cuda/column_copies.cuh"
#include "src/cuda/column_quantizer.cuh"

namespace actnn::cuda {
namespace {

/// Of a multiprocessor.
constexpr int kUnpackingBlocks = 6;

template <class Element, bool kVectors, bool kAffine>
__global__ void __launch_bounds__(kUnpackingThreads, kUnpackingBlocks)
    dequantize_columns_kernel(const Backward<Element> source, const WarpColumns columns, const StageParts parts,
                              Element* elements) {
  using Copies = ColumnCopies<Element, kVectors, /*kFromX=*/false, /*kBothSides=*/false, kAffine>;
  using Place = typename Copies::Place;
  extern __shared__ uint4 shared[];
  wait_for_kernels_before();
  if (columns.part() >= columns.parts) {
    return;
  }
  typename Copies::Table table;
  Copies copies(source, columns, parts, shared, table, [](int64_t /*channel*/) { return true; });
  Place place(columns, columns.first_channel(), columns.column());
  const auto unpack = [&] {
    typename Place::Row values[kRows];
    FiniteCheck<Element> check;
    float results[kRows][2];
    copies.for_each_pair(
        place,
        [&](int /*pair*/, int i, const SavedOctet& octet) {
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            results[j][i] = octet.copies[j];
          }
        },
        [&](int pair) {
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            values[j].set_pair(pair, results[j][0], results[j][1]);
            check.add(values[j], pair);
          }
        });
    if (!check.all_finite()) {
      make_nans_canonical(values);
    }
    place.store(values, elements);
  };
  auto no_rows = copies.template rows_ahead<0>();
  copies.template visit</*kBackwards=*/false, /*kInStep=*/true>(place, no_rows, unpack);
}

}  // namespace

cudaError_t quantize_columns(const QuantizeColumns& arguments, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    with_flags([&]<bool kVectors>() { error = launch_packing<Element, kVectors>(arguments, NothingElse{}, stream); },
               has_vectors(arguments.layout.channels, arguments.type, arguments.elements));
  });
  return error;
}

cudaError_t dequantize_columns(const DequantizeColumns& arguments, cudaStream_t stream) {
  const ColumnLayout<int64_t>& layout = arguments.layout;
  if (layout.rows == 0 || layout.channels == 0) {
    return cudaSuccess;
  }
  const WarpColumns columns = warps_of_items(layout.rows, layout.channels, kUnpackingBlocks * kUnpackingThreads);
  cudaError_t error = cudaSuccess;
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    Backward<Element> source(NormActBackward{.packed = arguments.packed, .layout = layout, .type = arguments.type});
    source.values.weight = arguments.weight;
    source.values.bias = arguments.bias;
    with_flags(
        [&]<bool kVectors, bool kAffine>() {
          const auto kernel = dequantize_columns_kernel<Element, kVectors, kAffine>;
          const StageParts parts(columns, source);
          error = launch_warps(kernel, columns, parts, stream, source, columns, parts,
                               static_cast<Element*>(arguments.elements));
        },
        has_packed_vectors(layout.channels, arguments.type, arguments.elements),
        arguments.weight != nullptr || arguments.bias != nullptr);
  });
  return error;
}

}  // namespace actnn::cuda
