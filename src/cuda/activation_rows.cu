#include "actnn/cuda/rows.h"
#include "src/cuda/row_teams.cuh"
#include "src/cuda/smooth_activation.cuh"

namespace actnn::cuda {
namespace {

struct ThreePieces {
  RawPiece x;
  RawPiece gate;
  RawPiece grad;
};

template <bool kVectors>
__global__ void __launch_bounds__(kTeamBlock, kStripBlocks)
    activate_rows_backward_kernel(const ActivateRowsBackward arguments, const RowTeams teams) {
  __shared__ Piece shared[kTeamBlock];
  wait_for_kernels_before();
  const TeamMember<1, kVectors> member(teams);
  const bool is_gated = arguments.gate.elements != nullptr;
  Piece sums[1] = {};
  member.for_each_row_ahead(
      [&](int64_t row) {
        return ThreePieces{member.fetch(arguments.x, row), member.fetch(arguments.gate, row),
                           member.fetch(arguments.grad, row)};
      },
      [&](int64_t row, const ThreePieces& raw) {
        Piece grad_x[1] = {member.fetched(arguments.x, raw.x)};
        const Piece grad = member.fetched(arguments.grad, raw.grad);
        Piece gate;
        if (is_gated) {
          gate = member.fetched(arguments.gate, raw.gate);
        }
        Piece grad_gate[1];
#pragma unroll
        for (int k = 0; k < kPiece; ++k) {
          const ActivatedNumber number = activate(arguments.kind, grad_x[0].x[k]);
          grad_gate[0].x[k] = number.y * grad.x[k];
          grad_x[0].x[k] = number.derivative * (is_gated ? gate.x[k] * grad.x[k] : grad.x[k]);
        }
        if (arguments.grad_gate.elements != nullptr) {
          member.store(arguments.grad_gate, row, grad_gate);
        }
        if (arguments.grad_x.elements != nullptr) {
          member.store(arguments.grad_x, row, grad_x);
        }
        if (arguments.grad_bias != nullptr) {
          round_to(arguments.grad_x.type, grad_x[0]);
          add(grad_x, sums);
        }
      });
  if (arguments.grad_bias != nullptr) {
    write_column_sums(member, sums, arguments.workspace, 0, 1, shared);
  }
}

struct TwoPieces {
  RawPiece x;
  RawPiece gate;
};

template <bool kVectors>
__global__ void __launch_bounds__(kTeamBlock, kStripBlocks)
    gate_rows_kernel(const GateRows arguments, const RowTeams teams) {
  wait_for_kernels_before();
  const TeamMember<1, kVectors> member(teams);
  member.for_each_row_ahead(
      [&](int64_t row) {
        return TwoPieces{member.fetch(arguments.x, row), member.fetch(arguments.gate, row)};
      },
      [&](int64_t row, const TwoPieces& raw) {
        Piece x[1] = {member.fetched(arguments.x, raw.x)};
        const Piece gate = member.fetched(arguments.gate, raw.gate);
#pragma unroll
        for (int k = 0; k < kPiece; ++k) {
          x[0].x[k] = activate(arguments.kind, x[0].x[k]).y * gate.x[k];
        }
        member.store(arguments.output, row, x);
      });
}

}  // namespace

cudaError_t activate_rows_backward(const ActivateRowsBackward& arguments, cudaStream_t stream) {
  const RowTeams teams(
      arguments.rows, arguments.channels,
      begin_at_vectors(arguments.x, arguments.gate, arguments.grad, arguments.grad_x, arguments.grad_gate),
      Rows::kStrips);
  cudaError_t error = cudaSuccess;
  with_vectors(teams, [&]<bool kVectors>() {
    error = launch_kernel(activate_rows_backward_kernel<kVectors>, teams.blocks(), teams.threads(), 0, stream,
                          arguments, teams);
  });
  if (error != cudaSuccess || arguments.grad_bias == nullptr) {
    return error;
  }
  return join_column_sums(arguments.workspace, teams.parts, teams.channels, 1, &arguments.grad_bias, stream);
}

cudaError_t gate_rows(const GateRows& arguments, cudaStream_t stream) {
  const RowTeams teams(arguments.rows, arguments.channels,
                       begin_at_vectors(arguments.x, arguments.gate, arguments.output), Rows::kStrips);
  cudaError_t error = cudaSuccess;
  with_vectors(teams, [&]<bool kVectors>() {
    error = launch_kernel(gate_rows_kernel<kVectors>, teams.blocks(), teams.threads(), 0, stream, arguments, teams);
  });
  return error;
}

}  // namespace actnn::cuda
