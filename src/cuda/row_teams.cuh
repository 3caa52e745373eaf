#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "actnn/core/dropout.h"
#include "actnn/cuda/rows.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/vector.cuh"

/// \file
/// How the threads of a kernel share a matrix of rows: a *team* of threads has a row, or, where nobody needs a whole
/// one, a *strip* of it; each thread *pieces* of 8 channels, always the same ones, so that it can sum over the rows
/// that it visits. Small rows have several teams in a block.

namespace actnn::cuda {

inline constexpr int kPiece = 8;
inline constexpr int kMostTeam = 512;
inline constexpr int kTeamBlock = 256;
inline constexpr int kMostPieces = static_cast<int>(kMostRowChannels) / (kPiece * kMostTeam);

/// Threads of a multiprocessor at once, with whole rows, if they have one piece each, at most, or several; blocks, with
/// strips, whose kernels are bounded to so many.
inline constexpr int kWholeThreads = 1024;
inline constexpr int kThreadsOfPieces = 512;
inline constexpr int kStripBlocks = 3;

/// Whether a team has whole rows.
enum class Rows { kWhole, kStrips };

struct RowTeams {
  int64_t rows;
  int channels;
  int team = 4;      ///< threads of a row or a strip, a power of 2
  int pieces = 1;    ///< of a thread: 1, 2 or 4
  int teams;         ///< of a block
  int strips = 1;    ///< of a row
  unsigned parts;    ///< of the rows; block b has strip b % strips of part b / strips
  bool has_vectors;  ///< whole pieces, at multiples of 16 bytes

  RowTeams(int64_t matrix_rows, int64_t matrix_channels, bool vectors, Rows own = Rows::kWhole,
           int whole_threads = kWholeThreads)
      : rows(matrix_rows), channels(static_cast<int>(matrix_channels)), has_vectors(vectors && channels % kPiece == 0) {
    const int wanted = static_cast<int>(ceil_div(matrix_channels, int64_t{kPiece}));
    const int most = own == Rows::kWhole ? kMostTeam : kTeamBlock;
    while (team < std::min(wanted, most)) {
      team *= 2;
    }
    if (own == Rows::kWhole) {
      pieces = wanted <= team ? 1 : wanted <= 2 * team ? 2 : kMostPieces;
    } else {
      strips = (wanted + team - 1) / team;
    }
    teams = std::max(1, kTeamBlock / team);
    const int at_most = pieces == 1 ? whole_threads : kThreadsOfPieces;
    const int of_multiprocessor = own == Rows::kWhole ? at_most / static_cast<int>(threads()) : kStripBlocks;
    const int64_t at_once = int64_t{multiprocessors()} * of_multiprocessor / strips;
    parts =
        static_cast<unsigned>(std::clamp<int64_t>(ceil_div(rows, int64_t{teams}), 1, std::max<int64_t>(at_once, 1)));
  }

  unsigned threads() const { return static_cast<unsigned>(team * teams); }
  unsigned blocks() const { return parts * static_cast<unsigned>(strips); }
};

/// Calls `body.operator()<kVectors>()`.
template <class Body>
void with_vectors(const RowTeams& teams, Body&& body) {
  with_flags(body, teams.has_vectors);
}

/// Calls `body.operator()<kPieces, kVectors>()` with the pieces of a thread.
template <class Body>
void with_pieces(const RowTeams& teams, Body&& body) {
  with_vectors(teams, [&]<bool kVectors>() {
    if (teams.pieces == 1) {
      body.template operator()<1, kVectors>();
    } else if (teams.pieces == 2) {
      body.template operator()<2, kVectors>();
    } else {
      body.template operator()<kMostPieces, kVectors>();
    }
  });
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

/// Calls `body(p, k)` for number k of each of a thread's pieces p.
template <int kPieces, class Body>
__device__ __forceinline__ void for_each_number(Body&& body) {
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int k = 0; k < kPiece; ++k) {
      body(p, k);
    }
  }
}

template <int kPieces>
__device__ void add(const Piece (&summands)[kPieces], Piece (&sums)[kPieces]) {
  for_each_number<kPieces>([&](int p, int k) { sums[p].x[k] += summands[p].x[k]; });
}

template <int kPieces>
__device__ void multiply(const Piece (&factors)[kPieces], Piece (&products)[kPieces]) {
  for_each_number<kPieces>([&](int p, int k) { products[p].x[k] *= factors[p].x[k]; });
}

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

/// A piece as it is in memory: eight floats, or eight 16-bit elements in the first half.
struct RawPiece {
  Vector half[2];
};

/// Elements at a multiple of 16 bytes.
__device__ inline void fetch_whole_piece(const RowSource& source, int64_t at, RawPiece& raw) {
  if (source.type == ElementType::kFloat32) {
    const auto* from = reinterpret_cast<const uint4*>(static_cast<const float*>(source.elements) + at);
    raw.half[0] = as_vector(from[0]);
    raw.half[1] = as_vector(from[1]);
  } else {
    raw.half[0] = as_vector(*reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(source.elements) + at));
  }
}

__device__ inline void convert(ElementType type, const RawPiece& raw, Piece& piece) {
  if (type == ElementType::kFloat32) {
#pragma unroll
    for (int k = 0; k < kPiece; ++k) {
      piece.x[k] = float_of(raw.half[k / 4].word[k % 4]);
    }
  } else {
    type == ElementType::kBFloat16 ? set_from<BFloat16>(raw.half[0], piece) : set_from<Float16>(raw.half[0], piece);
  }
}

__device__ inline void load_whole_piece(const RowSource& source, int64_t at, Piece& piece) {
  RawPiece raw;
  fetch_whole_piece(source, at, raw);
  convert(source.type, raw, piece);
}

__device__ inline void store_whole_piece(const RowTarget& target, int64_t at, const Piece& piece) {
  if (target.type == ElementType::kFloat32) {
    auto* to = reinterpret_cast<float4*>(static_cast<float*>(target.elements) + at);
    to[0] = make_float4(piece.x[0], piece.x[1], piece.x[2], piece.x[3]);
    to[1] = make_float4(piece.x[4], piece.x[5], piece.x[6], piece.x[7]);
  } else {
    store(static_cast<uint16_t*>(target.elements) + at,
          target.type == ElementType::kBFloat16 ? rounded_vector<BFloat16>(piece) : rounded_vector<Float16>(piece));
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

/// The thread's place in its team, and the walk over rows. `kVectors`: the teams' `has_vectors`.
template <int kPieces, bool kVectors>
class TeamMember {
 public:
  __device__ explicit TeamMember(const RowTeams& teams)
      : teams_(teams),
        member_(static_cast<int>(threadIdx.x) & (teams.team - 1)),
        team_(static_cast<int>(threadIdx.x) / teams.team),
        strip_(static_cast<int>(blockIdx.x % static_cast<unsigned>(teams.strips))),
        part_(blockIdx.x / static_cast<unsigned>(teams.strips)) {}

  /// Calls `body(row, exists)` for each row of the team; all threads of a team have as many calls.
  template <class Body>
  __device__ void for_each_row(Body&& body) const {
    for (int64_t first = int64_t{part_} * teams_.teams; first < teams_.rows;
         first += int64_t{teams_.parts} * teams_.teams) {
      const int64_t row = first + team_;
      body(min(row, teams_.rows - 1), row < teams_.rows);
    }
  }

  /// Calls `use(row, fetched)` for each row of the team, where `fetched` is what `fetch(row)` gave: while one row is in
  /// use, the next is under way.
  template <class Fetch, class Use>
  __device__ void for_each_row_ahead(Fetch&& fetch, Use&& use) const {
    int64_t row = int64_t{part_} * teams_.teams + team_;
    const int64_t step = int64_t{teams_.parts} * teams_.teams;
    if (row >= teams_.rows || channel(0) >= teams_.channels) {
      return;
    }
    auto next = fetch(row);
    for (; row < teams_.rows; row += step) {
      const auto now = next;
      if (row + step < teams_.rows) {
        next = fetch(row + step);
      }
      use(row, now);
    }
  }

  /// Calls `use(rows, count)` with so many rows of the team at a time, but perhaps the last time; if the thread has
  /// channels.
  template <int kCount, class Use>
  __device__ void for_each_row_of(Use&& use) const {
    const int64_t step = int64_t{teams_.parts} * teams_.teams;
    if (channel(0) >= teams_.channels) {
      return;
    }
    for (int64_t first = int64_t{part_} * teams_.teams + team_; first < teams_.rows; first += kCount * step) {
      int64_t rows[kCount];
      int count = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        rows[i] = first + i * step;
        count += rows[i] < teams_.rows ? 1 : 0;
      }
      use(rows, count);
    }
  }

  /// The first piece of a row, on its way; nothing of a matrix that there is not.
  __device__ RawPiece fetch(const RowSource& source, int64_t row) const {
    RawPiece raw{};
    if (source.elements == nullptr) {
      return raw;
    }
    const int64_t at = row * teams_.channels + channel(0);
    if constexpr (kVectors) {
      fetch_whole_piece(source, at, raw);
    } else {
#pragma unroll
      for (int k = 0; k < kPiece; ++k) {
        raw.half[k / 4].word[k % 4] = channel(0) + k < teams_.channels ? bits_of(load_number(source, at + k)) : 0U;
      }
    }
    return raw;
  }
  /// The row behind this one that the team has, or one of those that there are.
  __device__ int64_t next(int64_t row) const {
    return min(row + int64_t{teams_.parts} * teams_.teams, teams_.rows - 1);
  }
  __device__ int64_t first() const { return min(int64_t{part_} * teams_.teams + team_, teams_.rows - 1); }

  __device__ Piece fetched(const RowSource& source, const RawPiece& raw) const {
    Piece piece;
    convert(kVectors ? source.type : ElementType::kFloat32, raw, piece);
    return piece;
  }

  __device__ int channel(int piece) const { return ((strip_ + piece) * teams_.team + member_) * kPiece; }
  /// Whether there is channel k of a piece.
  __device__ bool exists(int piece, int k) const { return channel(piece) + (kVectors ? 0 : k) < teams_.channels; }
  __device__ unsigned part() const { return part_; }
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
    } else if constexpr (!kVectors) {
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
    if constexpr (!kVectors) {
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
  int strip_;
  unsigned part_;
};

/// What is dropped of the pieces of a row, whose elements are counted through the matrix. Rounded, as dropout on its
/// own would be.
template <int kPieces, bool kVectors>
__device__ void drop(const TeamMember<kPieces, kVectors>& member, int64_t row, const DropoutScale& scale,
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

/// ... and what is dropped with a probability that may be 0.
template <int kPieces, bool kVectors>
__device__ void drop_and_round(const TeamMember<kPieces, kVectors>& member, int64_t row, const DropoutScale& scale,
                               const RandomState& random, bool drops, ElementType type, Piece (&x)[kPieces]) {
  if (drops) {
    drop(member, row, scale, random, type, x);
    return;
  }
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    round_to(type, x[p]);
  }
}

/// Rows of a matrix for a team that walks along: the next one is under way while one is in use, if a thread has one
/// piece of it; for more there are no registers.
template <int kPieces, bool kVectors>
class RowAhead {
 public:
  __device__ RowAhead(const TeamMember<kPieces, kVectors>& member, const RowSource& source)
      : member_(member), source_(source) {
    if constexpr (kPieces == 1) {
      next_ = fetch(member.first());
    }
  }

  __device__ bool exists() const { return source_.elements != nullptr; }

  /// The row; it must be the one behind that of the last call.
  __device__ void take(int64_t row, Piece (&pieces)[kPieces]) {
    if constexpr (kPieces == 1) {
      const RawPiece now = next_;
      next_ = fetch(member_.next(row));
      pieces[0] = member_.fetched(source_, now);
    } else {
      member_.load(source_, row, pieces);
    }
  }

 private:
  __device__ RawPiece fetch(int64_t row) const {
    return member_.channel(0) < member_.teams().channels ? member_.fetch(source_, row) : RawPiece{};
  }

  const TeamMember<kPieces, kVectors>& member_;
  const RowSource& source_;
  RawPiece next_;
};

/// Writes {seed, offset}, unless there is no place for them.
__device__ inline void write_state(const RandomState& random, int64_t* state) {
  if (state != nullptr && thread_index() == 0) {
    state[0] = static_cast<int64_t>(random.seed);
    state[1] = static_cast<int64_t>(random.offset);
  }
}

/// Sums of a number of each thread of a team, for all of them. `shared`: two rooms of a block's warps times kNumbers
/// floats. All threads of a team take part.
template <int kNumbers>
class TeamSum {
 public:
  static constexpr int kRoom = kMostTeam / kWarp * kNumbers;
  static constexpr int kShared = 2 * kRoom;

  __device__ TeamSum(const RowTeams& teams, float* shared) : team_(teams.team), shared_(shared) {}

  __device__ void add_up(float (&numbers)[kNumbers]) {
    if (team_ < kWarp) {
      for (int distance = team_ / 2; distance > 0; distance /= 2) {
        add_of_lane(distance, numbers);
      }
      return;
    }
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      add_of_lane(distance, numbers);
    }
    if (team_ == kWarp) {
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
    wait_for_team();
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
  static __device__ void add_of_lane(int distance, float (&numbers)[kNumbers]) {
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
      numbers[n] += __shfl_xor_sync(~0U, numbers[n], distance);
    }
  }

  /// A barrier of the team's warps; number 0 is that of the block.
  __device__ void wait_for_team() const {
    const int barrier = 1 + static_cast<int>(threadIdx.x) / team_;
    asm volatile("bar.sync %0, %1;" : : "r"(barrier), "r"(team_) : "memory");
  }

  int team_;
  float* shared_;
  int room_ = 0;
};

/// Adds up what the teams of a block have summed for each channel, and writes it to the row of its part in the
/// workspace, [parts, sums, channels]. `shared`: kTeamBlock pieces.
template <int kPieces, bool kVectors>
__device__ void write_column_sums(const TeamMember<kPieces, kVectors>& member, const Piece (&sums)[kPieces],
                                  float* workspace, int number, int count, Piece* shared) {
  const RowTeams& teams = member.teams();
  float* const target = workspace + (int64_t{member.part()} * count + number) * teams.channels;
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
          target[channel + k] = sum.x[k];
        }
      }
    }
  }
}

/// Adds the rows of such a workspace up, and gives each of the `count` sums to its target; those that are null are left
/// out.
cudaError_t join_column_sums(const float* workspace, int64_t parts, int channels, int count, float* const* targets,
                             cudaStream_t stream);

}  // namespace actnn::cuda
