#include "actnn/cuda/rows.h"
#include "src/cuda/row_teams.cuh"
#include "src/cuda/team_rows.cuh"

namespace actnn::cuda {
namespace {

/// Threads of a multiprocessor in backward, with one piece of a row: as many as have the registers.
constexpr int backward_threads(bool has_branch) { return has_branch ? 512 : 768; }

/// Over rows: for the weight, the bias and the branch.
constexpr int sums_of_backward(bool has_branch) { return has_branch ? 3 : 2; }

/// A norm's weight or bias: where a thread has one piece of it in registers, else read for each row.
template <int kPieces, bool kVectors>
class NormParameter {
 public:
  __device__ NormParameter(const TeamMember<kPieces, kVectors>& member, const RowSource& source)
      : member_(member), source_(source) {
    if constexpr (kPieces == 1) {
      if (source.elements != nullptr) {
        member.load(source, 0, own_);
      }
    }
  }

  /// Calls `body(pieces)` if there is one.
  template <class Body>
  __device__ void with(Body&& body) const {
    if (source_.elements == nullptr) {
      return;
    }
    if constexpr (kPieces == 1) {
      body(own_);
    } else {
      Piece pieces[kPieces];
      member_.load(source_, 0, pieces);
      body(pieces);
    }
  }

 private:
  const TeamMember<kPieces, kVectors>& member_;
  const RowSource& source_;
  Piece own_[1];
};

template <int kPieces, bool kVectors>
__global__ void __launch_bounds__(kPieces == 1 ? kWholeThreads : kThreadsOfPieces)
    normalize_rows_kernel(const NormalizeRows arguments, const RowTeams teams, const DropoutScale scale) {
  __shared__ float shared[TeamSum<1>::kShared];
  wait_for_kernels_before();
  const TeamMember<kPieces, kVectors> member(teams);
  TeamSum<1> team_sum(teams, shared);
  const RandomState random = arguments.dropout > 0.0 ? arguments.random.load() : RandomState{};
  write_state(random, arguments.used_state);
  const float share = 1.0F / static_cast<float>(teams.channels);
  const NormParameter<kPieces, kVectors> weight(member, arguments.weight);
  const NormParameter<kPieces, kVectors> bias(member, arguments.bias);
  RowAhead<kPieces, kVectors> xs(member, arguments.x);
  RowAhead<kPieces, kVectors> residuals(member, arguments.residual);
  member.for_each_row([&](int64_t row, bool exists) {
    Piece s[kPieces];
    xs.take(row, s);
    if (arguments.dropout > 0.0) {
      drop(member, row, scale, random, arguments.x.type, s);
    }
    if (residuals.exists()) {
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
        s[p].x[k] -= member.exists(p, k) ? mean[0] * share : 0.0F;
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
    weight.with([&](const auto& pieces) { multiply(pieces, s); });
    bias.with([&](const auto& pieces) { add(pieces, s); });
    if (arguments.output.elements != nullptr) {
      member.store(arguments.output, row, s);
    }
    if (arguments.second_output.elements != nullptr) {
      member.store(arguments.second_output, row, s);
    }
  });
}

template <int kPieces, bool kVectors, bool kStaged, bool kBranch>
__global__ void __launch_bounds__(kPieces == 1 ? backward_threads(kBranch) : kThreadsOfPieces)
    normalize_rows_backward_kernel(const NormalizeRowsBackward arguments, const RowTeams teams,
                                   const DropoutScale scale) {
  extern __shared__ uint4 places[];
  __shared__ float shared[TeamSum<2>::kShared];
  __shared__ Piece pieces[kTeamBlock];
  wait_for_kernels_before();
  const TeamMember<kPieces, kVectors> member(teams);
  TeamSum<2> team_sum(teams, shared);
  const float share = 1.0F / static_cast<float>(teams.channels);
  const bool has_sums = arguments.workspace != nullptr;
  const RandomState random = kBranch && arguments.dropout > 0.0 ? arguments.random.load() : RandomState{};
  Piece branch_sums[kPieces] = {};
  Piece weight_sums[kPieces] = {};
  Piece bias_sums[kPieces] = {};
  uint4* memory = places;
  const TeamRows<kPieces, kVectors, kStaged> grads(member, arguments.grad, memory);
  const TeamRows<kPieces, kVectors, kStaged> second_grads(member, arguments.second_grad, memory);
  const TeamRows<kPieces, kVectors, kStaged> normalizeds(member, arguments.normalized, memory);
  const TeamRows<kPieces, kVectors, kStaged> residual_grads(member, arguments.residual_grad, memory);
  const auto fetch = [&](int64_t piece, int place) {
    grads.fetch(piece, place);
    second_grads.fetch(piece, place);
    normalizeds.fetch(piece, place);
    residual_grads.fetch(piece, place);
  };
  for_each_staged_row(member, fetch, [&](int64_t row, bool exists, int place) {
    const float rstd = arguments.rstd == nullptr ? 0.0F : arguments.rstd[row];  // well ahead of its use
    Piece g[kPieces];
    Piece normalized[kPieces];
    grads.take(row, place, g);
    normalizeds.take(row, place, normalized);
    if (second_grads.exists()) {
      Piece second[kPieces];
      second_grads.take(row, place, second);
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
    const float mean = arguments.is_centered ? sums[0] * share : 0.0F;
    const float slope = sums[1] * share;
    for_each_number<kPieces>(
        [&](int p, int k) { g[p].x[k] = rstd * __fmaf_rn(-normalized[p].x[k], slope, g[p].x[k] - mean); });
    if (residual_grads.exists()) {
      Piece residual[kPieces];
      residual_grads.take(row, place, residual);
      add(residual, g);
    }
    member.store(arguments.grad_input, row, g);
    if constexpr (kBranch) {
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        round_to(arguments.grad_input.type, g[p]);
      }
      drop_and_round(member, row, scale, random, arguments.dropout > 0.0, arguments.grad_branch.type, g);
      if (arguments.grad_branch.elements != nullptr) {
        member.store(arguments.grad_branch, row, g);
      }
      add(g, branch_sums);
    }
  });
  if (has_sums) {
    constexpr int kSums = sums_of_backward(kBranch);
    write_column_sums(member, weight_sums, arguments.workspace, 0, kSums, pieces);
    write_column_sums(member, bias_sums, arguments.workspace, 1, kSums, pieces);
    if constexpr (kBranch) {
      write_column_sums(member, branch_sums, arguments.workspace, 2, kSums, pieces);
    }
  }
}

/// Calls `body.operator()<kPieces, kVectors, kStaged>()`.
template <class Body>
void with_way(const RowTeams& teams, int staged_bytes, Body&& body) {
  with_pieces(teams, [&]<int kPieces, bool kVectors>() {
    if constexpr (kVectors) {
      if (staged_bytes > 0) {
        return body.template operator()<kPieces, true, true>();
      }
    }
    body.template operator()<kPieces, kVectors, false>();
  });
}

}  // namespace

cudaError_t normalize_rows(const NormalizeRows& arguments, cudaStream_t stream) {
  const RowTeams teams(
      arguments.rows, arguments.channels,
      begin_at_vectors(arguments.x, arguments.residual, arguments.weight, arguments.bias, arguments.sum,
                       arguments.normalized, arguments.output, arguments.second_output));
  cudaError_t error = cudaSuccess;
  with_pieces(teams, [&]<int kPieces, bool kVectors>() {
    error = launch_kernel(normalize_rows_kernel<kPieces, kVectors>, teams.blocks(), teams.threads(), 0, stream,
                          arguments, teams, DropoutScale(arguments.dropout));
  });
  return error;
}

cudaError_t normalize_rows_backward(const NormalizeRowsBackward& arguments, cudaStream_t stream) {
  const RowTeams teams(arguments.rows, arguments.channels,
                       begin_at_vectors(arguments.grad, arguments.second_grad, arguments.normalized, arguments.weight,
                                        arguments.residual_grad, arguments.grad_input, arguments.grad_branch),
                       Rows::kWhole, backward_threads(arguments.has_branch));
  const int bytes = bytes_of_staged_rows(
      teams, {arguments.grad, arguments.second_grad, arguments.normalized, arguments.residual_grad});
  cudaError_t error = cudaSuccess;
  with_way(teams, bytes, [&]<int kPieces, bool kVectors, bool kStaged>() {
    const auto launch = [&]<bool kBranch>() {
      const auto kernel = normalize_rows_backward_kernel<kPieces, kVectors, kStaged, kBranch>;
      error = allow_shared_memory(kernel, bytes);
      if (error == cudaSuccess) {
        error = launch_kernel(kernel, teams.blocks(), teams.threads(), bytes, stream, arguments, teams,
                              DropoutScale(arguments.dropout));
      }
    };
    with_flags(launch, arguments.has_branch);
  });
  if (error != cudaSuccess || arguments.workspace == nullptr) {
    return error;
  }
  float* const targets[] = {arguments.grad_weight, arguments.grad_bias, arguments.branch_sums};
  return join_column_sums(arguments.workspace, teams.parts, teams.channels, sums_of_backward(arguments.has_branch),
                          targets, stream);
}

}  // namespace actnn::cuda
