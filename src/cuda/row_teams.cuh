#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "actnn/core/dropout.h"
#include "actnn/cuda/rows.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/vector.cuh"

/// \file
/// How the threads of a kernel share a matrix of rows: a *team* of threads has a row, each thread *pieces* of 8
/// channels, always the same ones, so that it can sum over the rows that it visits. Small rows have several teams in a
/// block.

namespace actnn::cuda {

inline constexpr int kPiece = 8;
inline constexpr int kMostTeam = 512;
inline constexpr int kTeamBlock = 256;
inline constexpr int kMostPieces = static_cast<int>(kMostRowChannels) / (kPiece * kMostTeam);

struct RowTeams {
  int64_t rows;
  int channels;
  int team = 4;       ///< threads of a row, a power of 2
  int pieces;         ///< of a thread: 1, 2 or 4
  int teams;          ///< of a block
  unsigned blocks;
  bool has_vectors;  ///< whole pieces, at multiples of 16 bytes

  RowTeams(int64_t matrix_rows, int64_t matrix_channels, bool vectors)
      : rows(matrix_rows), channels(static_cast<int>(matrix_channels)), has_vectors(vectors && channels % kPiece == 0) {
    const int wanted = static_cast<int>(ceil_div(matrix_channels, int64_t{kPiece}));
    while (team < std::min(wanted, kMostTeam)) {
      team *= 2;
    }
    pieces = wanted <= team ? 1 : wanted <= 2 * team ? 2 : kMostPieces;
    teams = std::max(1, kTeamBlock / team);
    constexpr int kThreadsOfMultiprocessor = 1024;
    const int64_t at_once = int64_t{multiprocessors()} * (kThreadsOfMultiprocessor / static_cast<int>(threads()));
    blocks = static_cast<unsigned>(std::clamp<int64_t>(ceil_div(rows, int64_t{teams}), 1, at_once));
  }

  unsigned threads() const { return static_cast<unsigned>(team * teams); }
};

/// Calls `body.operator()<kPieces>()` with the pieces of a thread.
template <class Body>
void with_pieces(const RowTeams& teams, Body&& body) {
  if (teams.pieces == 1) {
    body.template operator()<1>();
  } else if (teams.pieces == 2) {
    body.template operator()<2>();
  } else {
    body.template operator()<kMostPieces>();
  }
}

/// Whether the matrices of 16- or 32-bit elements begin at multiples of 16 bytes; those that there are not do.
template <class... Matrices>
bool begin_at_vectors(const Matrices&... matrices) {
  return are_aligned(sizeof(Vector), matrices.elements...);
}

/// Eight numbers.
struct Piece {
  float x[kPiece];
};

template <class Element>
__device__ void set_from(const Vector& v, Piece& piece) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float2 pair = Pair<Element>::to_floats(v.word[w]);
    piece.x[2 * w] = pair.x;
    piece.x[2 * w + 1] = pair.y;
  }
}

template <class Element>
__device__ Vector rounded_vector(const Piece& piece) {
  Vector v;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    v.word[w] = Pair<Element>::round(piece.x[2 * w], piece.x[2 * w + 1]);
  }
  return v;
}

/// The numbers as they are in an element type.
__device__ inline void round_to(ElementType type, Piece& piece) {
  if (type == ElementType::kBFloat16) {
    set_from<BFloat16>(rounded_vector<BFloat16>(piece), piece);
  } else if (type == ElementType::kFloat16) {
    set_from<Float16>(rounded_vector<Float16>(piece), piece);
  }
}

/// Elements at a multiple of 16 bytes.
__device__ inline void load_whole_piece(const RowSource& source, int64_t at, Piece& piece) {
  if (source.type == ElementType::kFloat32) {
    const auto* from = reinterpret_cast<const float4*>(static_cast<const float*>(source.elements) + at);
    const float4 low = from[0];
    const float4 high = from[1];
    piece = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  } else {
    const Vector v = as_vector(*reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(source.elements) + at));
    source.type == ElementType::kBFloat16 ? set_from<BFloat16>(v, piece) : set_from<Float16>(v, piece);
  }
}

__device__ inline void store_whole_piece(const RowTarget& target, int64_t at, const Piece& piece) {
  if (target.type == ElementType::kFloat32) {
    auto* to = reinterpret_cast<float4*>(static_cast<float*>(target.elements) + at);
    to[0] = make_float4(piece.x[0], piece.x[1], piece.x[2], piece.x[3]);
    to[1] = make_float4(piece.x[4], piece.x[5], piece.x[6], piece.x[7]);
  } else {
    store(static_cast<uint16_t*>(target.elements) + at, target.type == ElementType::kBFloat16
                                                            ? rounded_vector<BFloat16>(piece)
                                                            : rounded_vector<Float16>(piece));
  }
}

__device__ inline float load_number(const RowSource& source, int64_t i) {
  switch (source.type) {
    case ElementType::kBFloat16:
      return to_float(static_cast<const BFloat16*>(source.elements)[i]);
    case ElementType::kFloat16:
      return to_float(static_cast<const Float16*>(source.elements)[i]);
    default:
      return static_cast<const float*>(source.elements)[i];
  }
}

__device__ inline void store_number(const RowTarget& target, int64_t i, float x) {
  switch (target.type) {
    case ElementType::kBFloat16:
      store_rounded(x, static_cast<BFloat16*>(target.elements) + i);
      break;
    case ElementType::kFloat16:
      store_rounded(x, static_cast<Float16*>(target.elements) + i);
      break;
    default:
      static_cast<float*>(target.elements)[i] = x;
  }
}

/// The thread's place in its team, and the walk over rows.
template <int kPieces>
class TeamMember {
 public:
  __device__ explicit TeamMember(const RowTeams& teams)
      : teams_(teams),
        member_(static_cast<int>(threadIdx.x) & (teams.team - 1)),
        team_(static_cast<int>(threadIdx.x) / teams.team) {}

  /// Calls `body(row, exists)` for each row of the team; all threads of a block have as many calls.
  template <class Body>
  __device__ void for_each_row(Body&& body) const {
    for (int64_t first = int64_t{blockIdx.x} * teams_.teams; first < teams_.rows;
         first += int64_t{gridDim.x} * teams_.teams) {
      const int64_t row = first + team_;
      body(min(row, teams_.rows - 1), row < teams_.rows);
    }
  }

  __device__ int channel(int piece) const { return (piece * teams_.team + member_) * kPiece; }
  __device__ int team() const { return team_; }
  __device__ int member() const { return member_; }
  __device__ const RowTeams& teams() const { return teams_; }

  /// Zeros for what does not exist.
  __device__ void load(const RowSource& source, int64_t row, Piece (&pieces)[kPieces]) const {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      load_piece(source, row * teams_.channels, channel(p), pieces[p]);
    }
  }
  __device__ void store(const RowTarget& target, int64_t row, const Piece (&pieces)[kPieces]) const {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      store_piece(target, row * teams_.channels, channel(p), pieces[p]);
    }
  }

  __device__ void load_piece(const RowSource& source, int64_t row_begin, int channel, Piece& piece) const {
    const int count = teams_.channels - channel;
    const int64_t at = row_begin + channel;
    if (count <= 0) {
      piece = {};
    } else if (!teams_.has_vectors) {
#pragma unroll
      for (int k = 0; k < kPiece; ++k) {
        piece.x[k] = k < count ? load_number(source, at + k) : 0.0F;
      }
    } else {
      load_whole_piece(source, at, piece);
    }
  }

  __device__ void store_piece(const RowTarget& target, int64_t row_begin, int channel, const Piece& piece) const {
    const int count = teams_.channels - channel;
    const int64_t at = row_begin + channel;
    if (count <= 0) {
      return;
    }
    if (!teams_.has_vectors) {
#pragma unroll
      for (int k = 0; k < kPiece; ++k) {
        if (k < count) {
          store_number(target, at + k, piece.x[k]);
        }
      }
    } else {
      store_whole_piece(target, at, piece);
    }
  }

 private:
  const RowTeams& teams_;
  int member_;
  int team_;
};

/// What is dropped of the pieces of a row, whose elements are counted through the matrix. Rounded, as dropout on its
/// own would be.
template <int kPieces>
__device__ void drop(const TeamMember<kPieces>& member, int64_t row, const DropoutScale& scale,
                     const RandomState& random, ElementType type, Piece (&x)[kPieces]) {
  static_assert(kPiece == 2 * kDropoutQuad);
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    const auto quad = static_cast<uint64_t>((row * member.teams().channels + member.channel(p)) / kDropoutQuad);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const PhiloxBlock block = random.block(quad + half);
#pragma unroll
      for (int k = 0; k < kDropoutQuad; ++k) {
        float& number = x[p].x[half * kDropoutQuad + k];
        number = scale.apply(number, block.word[k]);
      }
    }
    round_to(type, x[p]);
  }
}

/// Sums of a number of each thread of a team, for all of them. `shared`: two rooms of a block's warps times kNumbers
/// floats. All threads of a block take part.
template <int kNumbers>
class TeamSum {
 public:
  static constexpr int kRoom = kMostTeam / kWarp * kNumbers;
  static constexpr int kShared = 2 * kRoom;

  __device__ TeamSum(const RowTeams& teams, float* shared) : team_(teams.team), shared_(shared) {}

  __device__ void add_up(float (&numbers)[kNumbers]) {
    const int width = min(team_, kWarp);
    for (int distance = width / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int n = 0; n < kNumbers; ++n) {
        numbers[n] += __shfl_xor_sync(~0U, numbers[n], distance);
      }
    }
    if (team_ <= kWarp) {
      return;
    }
    float* room = shared_ + room_ * kRoom;
    room_ ^= 1;  // so that nobody waits for those who still read the other
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    if (lane_index() == 0) {
#pragma unroll
      for (int n = 0; n < kNumbers; ++n) {
        room[warp * kNumbers + n] = numbers[n];
      }
    }
    __syncthreads();
    const int warps = team_ / kWarp;
    const float* first = room + warp / warps * warps * kNumbers;
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
      numbers[n] = first[n];
    }
    for (int w = 1; w < warps; ++w) {
#pragma unroll
      for (int n = 0; n < kNumbers; ++n) {
        numbers[n] += first[w * kNumbers + n];
      }
    }
  }

 private:
  int team_;
  float* shared_;
  int room_ = 0;
};

/// Adds up what the teams of a block have summed for each channel, and writes it to row `blockIdx.x` of the workspace,
/// [blocks, sums, channels]. `shared`: kTeamBlock pieces.
template <int kPieces>
__device__ void write_column_sums(const TeamMember<kPieces>& member, const Piece (&sums)[kPieces], float* workspace,
                                  int number, int count, Piece* shared) {
  const RowTeams& teams = member.teams();
  const RowTarget target{workspace + (int64_t{blockIdx.x} * count + number) * teams.channels, ElementType::kFloat32};
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    Piece sum = sums[p];
    if (teams.teams > 1) {
      __syncthreads();
      shared[threadIdx.x] = sum;
      __syncthreads();
      for (int team = 1; team < teams.teams && member.team() == 0; ++team) {
        const Piece& other = shared[team * teams.team + member.member()];
#pragma unroll
        for (int k = 0; k < kPiece; ++k) {
          sum.x[k] += other.x[k];
        }
      }
    }
    if (member.team() == 0) {
      const int channel = member.channel(p);
#pragma unroll
      for (int k = 0; k < kPiece; ++k) {
        if (channel + k < teams.channels) {
          static_cast<float*>(target.elements)[channel + k] = sum.x[k];
        }
      }
    }
  }
}

/// Adds the rows of such a workspace up, and gives each of the `count` sums to its target; those that are null are left
/// out.
cudaError_t join_column_sums(const float* workspace, const RowTeams& teams, int count, float* const* targets,
                             cudaStream_t stream);

}  // namespace actnn::cuda
