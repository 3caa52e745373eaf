#include "actnn/cuda/rows.h"
#include "src/cuda/row_teams.cuh"

namespace actnn::cuda {
namespace {

template <int kPieces>
__global__ void __launch_bounds__(kMostTeam)
    normalize_rows_kernel(const NormalizeRows arguments, const RowTeams teams, const DropoutScale scale) {
  __shared__ float shared[TeamSum<1>::kShared];
  wait_for_kernels_before();
  const TeamMember<kPieces> member(teams);
  TeamSum<1> team_sum(teams, shared);
  const RandomState random = arguments.dropout > 0.0 ? arguments.random.load() : RandomState{};
  const float share = 1.0F / static_cast<float>(teams.channels);
  RowAhead<kPieces> xs(member, arguments.x);
  RowAhead<kPieces> residuals(member, arguments.residual);
  member.for_each_row([&](int64_t row, bool exists) {
    Piece s[kPieces];
    xs.take(row, s);
    if (arguments.dropout > 0.0) {
      drop(member, row, scale, random, arguments.x.type, s);
    }
    if (arguments.residual.elements != nullptr) {
      Piece residual[kPieces];
      residuals.take(row, residual);
      add(residual, s);
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        round_to(arguments.sum.type, s[p]);
      }
    }
    if (arguments.sum.elements != nullptr && exists) {
      member.store(arguments.sum, row, s);
    }
    if (arguments.is_centered) {
      float mean[1] = {0.0F};
      for_each_number<kPieces>([&](int p, int k) { mean[0] += s[p].x[k]; });
      team_sum.add_up(mean);
      for_each_number<kPieces>([&](int p, int k) {
        // What does not exist stays 0.
        s[p].x[k] -= member.channel(p) + k < teams.channels ? mean[0] * share : 0.0F;
      });
    }
    float squares[1] = {0.0F};
    for_each_number<kPieces>([&](int p, int k) { squares[0] = __fmaf_rn(s[p].x[k], s[p].x[k], squares[0]); });
    team_sum.add_up(squares);
    const float rstd = __frsqrt_rn(squares[0] * share + static_cast<float>(arguments.eps));
    if (!exists) {
      return;
    }
    if (arguments.rstd != nullptr && member.member() == 0) {
      arguments.rstd[row] = rstd;
    }
    for_each_number<kPieces>([&](int p, int k) { s[p].x[k] *= rstd; });
    if (arguments.normalized.elements != nullptr) {
      member.store(arguments.normalized, row, s);
    }
    if (arguments.weight.elements != nullptr) {
      Piece weight[kPieces];
      member.load(arguments.weight, 0, weight);
      multiply(weight, s);
    }
    if (arguments.bias.elements != nullptr) {
      Piece bias[kPieces];
      member.load(arguments.bias, 0, bias);
      add(bias, s);
    }
    if (arguments.output.elements != nullptr) {
      member.store(arguments.output, row, s);
    }
    if (arguments.second_output.elements != nullptr) {
      member.store(arguments.second_output, row, s);
    }
  });
}

template <int kPieces>
__global__ void __launch_bounds__(kMostTeam)
    normalize_rows_backward_kernel(const NormalizeRowsBackward arguments, const RowTeams teams) {
  __shared__ float shared[TeamSum<2>::kShared];
  __shared__ Piece pieces[kTeamBlock];
  wait_for_kernels_before();
  const TeamMember<kPieces> member(teams);
  TeamSum<2> team_sum(teams, shared);
  const float share = 1.0F / static_cast<float>(teams.channels);
  const bool has_sums = arguments.workspace != nullptr;
  Piece weight_sums[kPieces] = {};
  Piece bias_sums[kPieces] = {};
  RowAhead<kPieces> grads(member, arguments.grad);
  RowAhead<kPieces> second_grads(member, arguments.second_grad);
  RowAhead<kPieces> normalizeds(member, arguments.normalized);
  RowAhead<kPieces> residual_grads(member, arguments.residual_grad);
  member.for_each_row([&](int64_t row, bool exists) {
    Piece g[kPieces];
    Piece normalized[kPieces];
    grads.take(row, g);
    normalizeds.take(row, normalized);
    if (second_grads.exists()) {
      Piece second[kPieces];
      second_grads.take(row, second);
      add(second, g);
    }
    if (has_sums && exists) {
      for_each_number<kPieces>([&](int p, int k) {
        weight_sums[p].x[k] = __fmaf_rn(g[p].x[k], normalized[p].x[k], weight_sums[p].x[k]);
        bias_sums[p].x[k] += g[p].x[k];
      });
    }
    if (arguments.grad_input.elements == nullptr) {
      return;
    }
    if (arguments.weight.elements != nullptr) {
      Piece weight[kPieces];
      member.load(arguments.weight, 0, weight);
      multiply(weight, g);
    }
    float sums[2] = {0.0F, 0.0F};  // of g, of g times normalized
    for_each_number<kPieces>([&](int p, int k) {
      sums[0] += g[p].x[k];
      sums[1] = __fmaf_rn(g[p].x[k], normalized[p].x[k], sums[1]);
    });
    team_sum.add_up(sums);
    if (!exists) {
      return;
    }
    const float rstd = arguments.rstd[row];
    const float mean = arguments.is_centered ? sums[0] * share : 0.0F;
    const float slope = sums[1] * share;
    for_each_number<kPieces>(
        [&](int p, int k) { g[p].x[k] = rstd * __fmaf_rn(-normalized[p].x[k], slope, g[p].x[k] - mean); });
    if (residual_grads.exists()) {
      Piece residual[kPieces];
      residual_grads.take(row, residual);
      add(residual, g);
    }
    member.store(arguments.grad_input, row, g);
  });
  if (has_sums) {
    write_column_sums(member, weight_sums, arguments.workspace, 0, 2, pieces);
    write_column_sums(member, bias_sums, arguments.workspace, 1, 2, pieces);
  }
}

}  // namespace

cudaError_t normalize_rows(const NormalizeRows& arguments, cudaStream_t stream) {
  const RowTeams teams(
      arguments.rows, arguments.channels,
      begin_at_vectors(arguments.x, arguments.residual, arguments.weight, arguments.bias, arguments.sum,
                       arguments.normalized, arguments.output, arguments.second_output));
  cudaError_t error = cudaSuccess;
  with_pieces(teams, [&]<int kPieces>() {
    error = launch_kernel(normalize_rows_kernel<kPieces>, teams.blocks(), teams.threads(), 0, stream, arguments, teams,
                          DropoutScale(arguments.dropout));
  });
  return error;
}

cudaError_t normalize_rows_backward(const NormalizeRowsBackward& arguments, cudaStream_t stream) {
  const RowTeams teams(arguments.rows, arguments.channels,
                       begin_at_vectors(arguments.grad, arguments.second_grad, arguments.normalized, arguments.weight,
                                        arguments.residual_grad, arguments.grad_input));
  cudaError_t error = cudaSuccess;
  with_pieces(teams, [&]<int kPieces>() {
    error = launch_kernel(normalize_rows_backward_kernel<kPieces>, teams.blocks(), teams.threads(), 0, stream,
                          arguments, teams);
  });
  if (error != cudaSuccess || arguments.workspace == nullptr) {
    return error;
  }
  float* const targets[] = {arguments.grad_weight, arguments.grad_bias};
  return join_column_sums(arguments.workspace, teams.parts, teams.channels, 2, targets, stream);
}

}  // namespace actnn::cuda
