#pragma once

#include <cuda_pipeline.h>

#include <cstdint>

#include "src/cuda/column_tiles.cuh"
#include "src/cuda/launch.cuh"

/// \file
/// Rows of elements in shared memory, on their way from global memory to registers: a thread computes while its next
/// rows are under way. It takes what it has fetched itself, so that no thread waits for another.

namespace actnn::cuda {

/// Starts copying a vector by `cp.async`. Strips of short vectors are half a line wide: the line is brought into the L2
/// cache as a whole, since another warp reads the rest of it soon.
template <class Row>
__device__ void fetch_async(Row* to, const void* from) {
  if constexpr (sizeof(Row) == sizeof(uint2)) {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 8;"
                 :
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from)
                 : "memory");
  } else {
    __pipeline_memcpy_async(to, from, sizeof(Row));
  }
}

/// Room for the octets of rows of a warp's threads. Elements that cannot be read as vectors are not staged, but read
/// when they are taken. `cp.async` groups are the caller's.
template <class Place>
class RowStage {
 public:
  using Row = typename Place::Row;
  /// Bytes of a warp, a multiple of 16.
  static constexpr int kBytes = Place::kLoadsVectors ? kRows * kWarp * static_cast<int>(sizeof(Row)) : 0;

  /// `memory`: of the warp, at a multiple of 16 bytes.
  __device__ explicit RowStage(uint8_t* memory) : own_(reinterpret_cast<Row*>(memory) + lane_index()) {}

  /// Starts fetching the rows at `place`.
  template <class Element>
  __device__ void fetch(const Place& place, const Element* matrix) const {
    if constexpr (Place::kLoadsVectors) {
      place.for_each_row(matrix, [&](int j, const Element* element) { fetch_async(own_ + j * kWarp, element); });
    }
  }

  /// The rows at `place`, which have been fetched and have arrived.
  template <class Element>
  __device__ void take(const Place& place, const Element* matrix, Row (&rows)[kRows]) const {
    if constexpr (Place::kLoadsVectors) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        rows[j].template load<false>(reinterpret_cast<const Element*>(own_ + j * kWarp));
      }
    } else {
      place.template load<true>(matrix, rows);
    }
  }

 private:
  Row* own_;
};

/// Rows of up to `kMatrices` matrices for a warp that walks along: the next ones are under way in one stage while the
/// warp works on those of another.
template <class Place, int kMatrices>
class RowsAhead {
 public:
  using Element = typename Place::Element;
  using Row = typename Place::Row;
  static constexpr int kBytes = 2 * kMatrices * RowStage<Place>::kBytes;

  /// Null pointers stand for matrices that there are not. `memory`: of the warp, at a multiple of 16 bytes.
  __device__ RowsAhead(uint8_t* memory, const Element* const* matrices) : memory_(memory), matrices_{} {
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      matrices_[m] = matrices[m];
    }
  }

  /// Starts fetching the rows at `place`, as the next ones.
  __device__ void fetch(const Place& place) const {
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      if (matrices_[m] != nullptr) {
        stage(next_, m).fetch(place, matrices_[m]);
      }
    }
  }
  /// What are the next ones become those to take.
  __device__ void step() { next_ = kStageBytes - next_; }

  /// The rows of matrix m at `place`, which have arrived.
  __device__ void take(int m, const Place& place, Row (&rows)[kRows]) const {
    stage(kStageBytes - next_, m).take(place, matrices_[m], rows);
  }

 private:
  static constexpr int kStageBytes = kBytes / 2;

  __device__ RowStage<Place> stage(int of, int m) const {
    return RowStage<Place>(memory_ + of + m * RowStage<Place>::kBytes);
  }

  uint8_t* memory_;
  const Element* matrices_[kMatrices == 0 ? 1 : kMatrices];
  int next_ = 0;  ///< bytes to the stage of the next ones
};

}  // namespace actnn::cuda
