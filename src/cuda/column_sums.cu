#include <algorithm>

#include "actnn/cuda/rows.h"
#include "src/cuda/row_teams.cuh"

namespace actnn::cuda {
namespace {

constexpr int kMostSums = 4;
constexpr int kColumns = 32;  // of a block
constexpr int kShares = 32;   // of a column's rows, one for each warp
constexpr int kAtOnce = 8;    // loads of a thread: there is little to add, and each takes long
constexpr int kRowsAtOnce = 4;

struct Targets {
  float* of[kMostSums];
};

__global__ void __launch_bounds__(kColumns* kShares)
    join_column_sums_kernel(const float* workspace, int rows, int64_t columns, int channels, Targets targets) {
  __shared__ float shared[kShares][kColumns];
  wait_for_kernels_before();
  const int64_t column = int64_t{blockIdx.x} * kColumns + threadIdx.x % kColumns;
  const int share = static_cast<int>(threadIdx.x) / kColumns;
  float sum = 0.0F;
  if (column < columns) {
    for (int first = share; first < rows; first += kAtOnce * kShares) {
      float summands[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int row = first + i * kShares;
        summands[i] = row < rows ? workspace[row * columns + column] : 0.0F;
      }
#pragma unroll
      for (const float summand : summands) {
        sum += summand;
      }
    }
  }
  shared[share][threadIdx.x % kColumns] = sum;
  __syncthreads();
  if (share != 0 || column >= columns) {
    return;
  }
#pragma unroll
  for (int other = 1; other < kShares; ++other) {
    sum += shared[other][threadIdx.x];
  }
  float* const target = targets.of[column / channels];
  if (target != nullptr) {
    target[column % channels] = sum;
  }
}

template <bool kVectors>
__global__ void __launch_bounds__(kTeamBlock, kStripBlocks)
    sum_rows_kernel(const SumRows arguments, const RowTeams teams) {
  __shared__ Piece shared[kTeamBlock];
  wait_for_kernels_before();
  const TeamMember<1, kVectors> member(teams);
  const auto number = static_cast<int>(blockIdx.y);
  const RowSource& matrix = arguments.matrices[number];
  Piece sums[1] = {};
  member.for_each_row_of<kRowsAtOnce>([&](const int64_t(&rows)[kRowsAtOnce], int count) {
    RawPiece raw[kRowsAtOnce];
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      raw[i] = i < count ? member.fetch(matrix, rows[i]) : RawPiece{};
    }
#pragma unroll
    for (const RawPiece& one : raw) {
      const Piece x[1] = {member.fetched(matrix, one)};
      add(x, sums);
    }
  });
  write_column_sums(member, sums, arguments.workspace, number, arguments.count, shared);
}

}  // namespace

cudaError_t join_column_sums(const float* workspace, int64_t parts, int channels, int count, float* const* targets,
                             cudaStream_t stream) {
  Targets given{};
  std::copy_n(targets, count, given.of);
  const int64_t columns = int64_t{count} * channels;
  return launch_kernel(join_column_sums_kernel, blocks_for(columns, kColumns), kColumns * kShares, 0, stream, workspace,
                       static_cast<int>(parts), columns, channels, given);
}

int64_t column_sums_workspace(int64_t rows, int64_t channels, int sums) {
  const unsigned parts = std::max(RowTeams(rows, channels, false, Rows::kWhole).parts,
                                  RowTeams(rows, channels, false, Rows::kStrips).parts);
  return int64_t{parts} * sums * channels;
}

cudaError_t sum_rows(const SumRows& arguments, cudaStream_t stream) {
  const RowSource* const end = arguments.matrices + arguments.count;
  const bool vectors = std::all_of(arguments.matrices, end, [](const RowSource& one) { return begin_at_vectors(one); });
  RowTeams teams(arguments.rows, arguments.channels, vectors, Rows::kStrips);
  const auto count = static_cast<unsigned>(arguments.count);
  teams.parts = std::max(teams.parts / count, 1U);
  cudaError_t error = cudaSuccess;
  with_vectors(teams, [&]<bool kVectors>() {
    error = launch_kernel(sum_rows_kernel<kVectors>, dim3(teams.blocks(), count), teams.threads(), 0, stream, arguments,
                          teams);
  });
  return error == cudaSuccess ? join_column_sums(arguments.workspace, teams.parts, teams.channels, arguments.count,
                                                 arguments.sums, stream)
                              : error;
}

}  // namespace actnn::cuda
