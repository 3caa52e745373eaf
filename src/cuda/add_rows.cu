#include "actnn/core/dropout.h"
#include "actnn/cuda/rows.h"
#include "src/cuda/row_teams.cuh"

namespace actnn::cuda {
namespace {

struct TwoPieces {
  RawPiece x;
  RawPiece residual;
};

template <bool kVectors>
__global__ void __launch_bounds__(kTeamBlock, kStripBlocks)
    add_rows_kernel(const AddRows arguments, const RowTeams teams, const DropoutScale scale) {
  wait_for_kernels_before();
  const TeamMember<1, kVectors> member(teams);
  const RandomState random = arguments.dropout > 0.0 ? arguments.random.load() : RandomState{};
  write_state(random, arguments.used_state);
  member.for_each_row_ahead(
      [&](int64_t row) {
        return TwoPieces{member.fetch(arguments.x, row), member.fetch(arguments.residual, row)};
      },
      [&](int64_t row, const TwoPieces& raw) {
        Piece x[1] = {member.fetched(arguments.x, raw.x)};
        const Piece residual[1] = {member.fetched(arguments.residual, raw.residual)};
        if (arguments.dropout > 0.0) {
          drop(member, row, scale, random, arguments.x.type, x);
        }
        add(residual, x);
        member.store(arguments.output, row, x);
      });
}

template <bool kVectors>
__global__ void __launch_bounds__(kTeamBlock, kStripBlocks)
    drop_rows_kernel(const DropRows arguments, const RowTeams teams, const DropoutScale scale) {
  __shared__ Piece shared[kTeamBlock];
  wait_for_kernels_before();
  const TeamMember<1, kVectors> member(teams);
  const RandomState random = arguments.dropout > 0.0 ? arguments.random.load() : RandomState{};
  Piece sums[1] = {};
  member.for_each_row_ahead([&](int64_t row) { return member.fetch(arguments.grad, row); },
                            [&](int64_t row, const RawPiece& raw) {
                              Piece grad[1] = {member.fetched(arguments.grad, raw)};
                              drop_and_round(member, row, scale, random, arguments.dropout > 0.0, arguments.output.type,
                                             grad);
                              member.store(arguments.output, row, grad);
                              add(grad, sums);
                            });
  if (arguments.sums != nullptr) {
    write_column_sums(member, sums, arguments.workspace, 0, 1, shared);
  }
}

}  // namespace

cudaError_t add_rows(const AddRows& arguments, cudaStream_t stream) {
  const RowTeams teams(arguments.rows, arguments.channels,
                       begin_at_vectors(arguments.x, arguments.residual, arguments.output), Rows::kStrips);
  cudaError_t error = cudaSuccess;
  with_vectors(teams, [&]<bool kVectors>() {
    error = launch_kernel(add_rows_kernel<kVectors>, teams.blocks(), teams.threads(), 0, stream, arguments, teams,
                          DropoutScale(arguments.dropout));
  });
  return error;
}

cudaError_t drop_rows(const DropRows& arguments, cudaStream_t stream) {
  const RowTeams teams(arguments.rows, arguments.channels, begin_at_vectors(arguments.grad, arguments.output),
                       Rows::kStrips);
  cudaError_t error = cudaSuccess;
  with_vectors(teams, [&]<bool kVectors>() {
    error = launch_kernel(drop_rows_kernel<kVectors>, teams.blocks(), teams.threads(), 0, stream, arguments, teams,
                          DropoutScale(arguments.dropout));
  });
  if (error != cudaSuccess || arguments.sums == nullptr) {
    return error;
  }
  return join_column_sums(arguments.workspace, teams.parts, teams.channels, 1, &arguments.sums, stream);
}

}  // namespace actnn::cuda
