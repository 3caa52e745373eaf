#include <algorithm>

#include "actnn/cuda/rows.h"
#include "src/cuda/row_teams.cuh"

namespace actnn::cuda {
namespace {

constexpr int kMostSums = 2;
constexpr int kColumns = 32;  // of a block
constexpr int kShares = 32;   // of a column's rows, one for each warp
constexpr int kAtOnce = 8;    // loads of a thread: there is little to add, and each takes long

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
  Piece sums[1] = {};
  member.for_each_row_ahead([&](int64_t row) { return member.fetch(arguments.matrix, row); },
                            [&](int64_t /*row*/, const RawPiece& raw) {
                              const Piece x[1] = {member.fetched(arguments.matrix, raw)};
                              add(x, sums);
                            });
  write_column_sums(member, sums, arguments.workspace, 0, 1, shared);
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
  const RowTeams teams(arguments.rows, arguments.channels, begin_at_vectors(arguments.matrix), Rows::kStrips);
  cudaError_t error = cudaSuccess;
  with_vectors(teams, [&]<bool kVectors>() {
    error = launch_kernel(sum_rows_kernel<kVectors>, teams.blocks(), teams.threads(), 0, stream, arguments, teams);
  });
  return error == cudaSuccess
             ? join_column_sums(arguments.workspace, teams.parts, teams.channels, 1, &arguments.sums, stream)
             : error;
}

}  // namespace actnn::cuda
