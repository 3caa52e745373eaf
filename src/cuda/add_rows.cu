#include "actnn/core/dropout.h"
#include "actnn/cuda/rows.h"
#include "src/cuda/row_teams.cuh"

namespace actnn::cuda {
namespace {

template <int kPieces>
__global__ void __launch_bounds__(kMostTeam)
    add_rows_kernel(const AddRows arguments, const RowTeams teams, const DropoutScale scale) {
  wait_for_kernels_before();
  const TeamMember<kPieces> member(teams);
  const RandomState random = arguments.dropout > 0.0 ? arguments.random.load() : RandomState{};
  if (arguments.used_state != nullptr && thread_index() == 0) {
    arguments.used_state[0] = static_cast<int64_t>(random.seed);
    arguments.used_state[1] = static_cast<int64_t>(random.offset);
  }
  member.for_each_row([&](int64_t row, bool exists) {
    if (!exists) {
      return;
    }
    Piece x[kPieces];
    Piece residual[kPieces];
    member.load(arguments.x, row, x);
    member.load(arguments.residual, row, residual);
    if (arguments.dropout > 0.0) {
      drop(member, row, scale, random, arguments.x.type, x);
    }
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int k = 0; k < kPiece; ++k) {
        x[p].x[k] += residual[p].x[k];
      }
    }
    member.store(arguments.output, row, x);
  });
}

template <int kPieces>
__global__ void __launch_bounds__(kMostTeam)
    drop_rows_kernel(const DropRows arguments, const RowTeams teams, const DropoutScale scale) {
  __shared__ Piece shared[kTeamBlock];
  wait_for_kernels_before();
  const TeamMember<kPieces> member(teams);
  const RandomState random = arguments.dropout > 0.0 ? arguments.random.load() : RandomState{};
  Piece sums[kPieces] = {};
  member.for_each_row([&](int64_t row, bool exists) {
    if (!exists) {
      return;
    }
    Piece grad[kPieces];
    member.load(arguments.grad, row, grad);
    if (arguments.dropout > 0.0) {
      drop(member, row, scale, random, arguments.output.type, grad);
    }
    member.store(arguments.output, row, grad);
    if (arguments.sums != nullptr) {
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        round_to(arguments.output.type, grad[p]);
#pragma unroll
        for (int k = 0; k < kPiece; ++k) {
          sums[p].x[k] += grad[p].x[k];
        }
      }
    }
  });
  if (arguments.sums != nullptr) {
    write_column_sums(member, sums, arguments.workspace, 0, 1, shared);
  }
}

}  // namespace

cudaError_t add_rows(const AddRows& arguments, cudaStream_t stream) {
  const RowTeams teams(arguments.rows, arguments.channels,
                       begin_at_vectors(arguments.x, arguments.residual, arguments.output));
  cudaError_t error = cudaSuccess;
  with_pieces(teams, [&]<int kPieces>() {
    error = launch_kernel(add_rows_kernel<kPieces>, teams.blocks, teams.threads(), 0, stream, arguments, teams,
                          DropoutScale(arguments.dropout));
  });
  return error;
}

cudaError_t drop_rows(const DropRows& arguments, cudaStream_t stream) {
  const RowTeams teams(arguments.rows, arguments.channels, begin_at_vectors(arguments.grad, arguments.output));
  cudaError_t error = cudaSuccess;
  with_pieces(teams, [&]<int kPieces>() {
    error = launch_kernel(drop_rows_kernel<kPieces>, teams.blocks, teams.threads(), 0, stream, arguments, teams,
                          DropoutScale(arguments.dropout));
  });
  if (error != cudaSuccess || arguments.sums == nullptr) {
    return error;
  }
  return join_column_sums(arguments.workspace, teams, 1, &arguments.sums, stream);
}

}  // namespace actnn::cuda
