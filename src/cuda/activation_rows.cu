#include "actnn/core/activation.h"
#include "actnn/cuda/rows.h"
#include "src/cuda/row_teams.cuh"

namespace actnn::cuda {
namespace {

constexpr float kSqrtHalf = 0.70710678118654752440F;
constexpr float kTwoOverSqrtPi = 1.12837916709551257390F;

/// x P(X < x) of a normal X, and the derivative.
__device__ ActivatedNumber gelu(float x) {
  const float share = __fmaf_rn(0.5F, erff(x * kSqrtHalf), 0.5F);
  const float density = 0.5F * kSqrtHalf * kTwoOverSqrtPi * __expf(-0.5F * x * x);
  return {x * share, __fmaf_rn(x, density, share)};
}

/// x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), and the derivative.
__device__ ActivatedNumber gelu_tanh(float x) {
  constexpr float kLinear = 2.0F * kSqrtHalf * kTwoOverSqrtPi;
  constexpr float kCubic = 0.044715F * kLinear;
  constexpr float kFarthest = SigmoidCoefficients::kFarthest;
  const float square = x * x;
  const float twice = x * __fmaf_rn(kCubic, square, kLinear);
  const float share = sigmoid(at_most(twice < -kFarthest ? -kFarthest : twice, kFarthest));
  const float slope = __fmaf_rn(3.0F * kCubic, square, kLinear);
  return {x * share, share * __fmaf_rn(x * (1.0F - share), slope, 1.0F)};
}

__device__ ActivatedNumber activate(ActivationKind kind, float x) {
  switch (kind) {
    case ActivationKind::kGELU:
      return gelu(x);
    case ActivationKind::kGELUTanh:
      return gelu_tanh(x);
    default:
      return actnn::activate<ActivationFunction::kSiLU>(x);
  }
}

template <int kPieces>
__global__ void __launch_bounds__(kMostTeam)
    activate_rows_backward_kernel(const ActivateRowsBackward arguments, const RowTeams teams) {
  __shared__ Piece shared[kTeamBlock];
  wait_for_kernels_before();
  const TeamMember<kPieces> member(teams);
  const bool is_gated = arguments.gate.elements != nullptr;
  Piece sums[kPieces] = {};
  member.for_each_row([&](int64_t row, bool exists) {
    if (!exists) {
      return;
    }
    const int64_t begin = row * teams.channels;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int channel = member.channel(p);
      Piece x;
      Piece grad;
      Piece gate;
      member.load_piece(arguments.x, begin, channel, x);
      member.load_piece(arguments.grad, begin, channel, grad);
      if (is_gated) {
        member.load_piece(arguments.gate, begin, channel, gate);
      }
      Piece output;
      Piece grad_gate;
#pragma unroll
      for (int k = 0; k < kPiece; ++k) {
        const ActivatedNumber number = activate(arguments.kind, x.x[k]);
        output.x[k] = is_gated ? number.y * gate.x[k] : number.y;
        grad_gate.x[k] = number.y * grad.x[k];
        x.x[k] = number.derivative * (is_gated ? gate.x[k] * grad.x[k] : grad.x[k]);
      }
      if (arguments.output.elements != nullptr) {
        member.store_piece(arguments.output, begin, channel, output);
      }
      if (arguments.grad_gate.elements != nullptr) {
        member.store_piece(arguments.grad_gate, begin, channel, grad_gate);
      }
      if (arguments.grad_x.elements != nullptr) {
        member.store_piece(arguments.grad_x, begin, channel, x);
      }
      if (arguments.grad_bias != nullptr) {
        round_to(arguments.grad_x.type, x);
#pragma unroll
        for (int k = 0; k < kPiece; ++k) {
          sums[p].x[k] += x.x[k];
        }
      }
    }
  });
  if (arguments.grad_bias != nullptr) {
    write_column_sums(member, sums, arguments.workspace, 0, 1, shared);
  }
}

template <int kPieces>
__global__ void __launch_bounds__(kMostTeam) gate_rows_kernel(const GateRows arguments, const RowTeams teams) {
  wait_for_kernels_before();
  const TeamMember<kPieces> member(teams);
  member.for_each_row([&](int64_t row, bool exists) {
    if (!exists) {
      return;
    }
    Piece x[kPieces];
    Piece gate[kPieces];
    member.load(arguments.x, row, x);
    member.load(arguments.gate, row, gate);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int k = 0; k < kPiece; ++k) {
        x[p].x[k] = activate(arguments.kind, x[p].x[k]).y * gate[p].x[k];
      }
    }
    member.store(arguments.output, row, x);
  });
}

}  // namespace

cudaError_t activate_rows_backward(const ActivateRowsBackward& arguments, cudaStream_t stream) {
  const RowTeams teams(arguments.rows, arguments.channels,
                       begin_at_vectors(arguments.x, arguments.gate, arguments.grad, arguments.output,
                                        arguments.grad_x, arguments.grad_gate));
  cudaError_t error = cudaSuccess;
  with_pieces(teams, [&]<int kPieces>() {
    error = launch_kernel(activate_rows_backward_kernel<kPieces>, teams.blocks, teams.threads(), 0, stream, arguments,
                          teams);
  });
  if (error != cudaSuccess || arguments.grad_bias == nullptr) {
    return error;
  }
  return join_column_sums(arguments.workspace, teams, 1, &arguments.grad_bias, stream);
}

cudaError_t gate_rows(const GateRows& arguments, cudaStream_t stream) {
  const RowTeams teams(arguments.rows, arguments.channels,
                       begin_at_vectors(arguments.x, arguments.gate, arguments.output));
  cudaError_t error = cudaSuccess;
  with_pieces(teams, [&]<int kPieces>() {
    error = launch_kernel(gate_rows_kernel<kPieces>, teams.blocks, teams.threads(), 0, stream, arguments, teams);
  });
  return error;
}

}  // namespace actnn::cuda
