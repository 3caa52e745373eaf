#pragma once

#include <cuda_pipeline.h>

#include <initializer_list>

#include "src/cuda/launch.cuh"
#include "src/cuda/row_teams.cuh"

/// \file
/// Rows of a team on their way from global memory to registers, through shared memory: the row behind the one in use is
/// under way. A thread takes what it has fetched itself, so that none waits for another.

namespace actnn::cuda {

/// Places for a row of each matrix: that in use, and the one behind it.
inline constexpr int kRowPlaces = 2;

/// The bytes of shared memory that the rows of matrices take in a block, beside what its sums over rows take; matrices
/// that there are not take none. 0: they are no vectors, or too many, and are read when they are taken.
inline int bytes_of_staged_rows(const RowTeams& teams, std::initializer_list<RowSource> matrices) {
  int bytes = 0;
  for (const RowSource& matrix : matrices) {
    if (matrix.elements != nullptr) {
      bytes += kRowPlaces * kPiece * static_cast<int>(element_size(matrix.type)) * teams.pieces *
               static_cast<int>(teams.threads());
    }
  }
  constexpr int kSums = kTeamBlock * static_cast<int>(sizeof(Piece));
  return teams.has_vectors && bytes + kSums <= most_shared_memory() ? bytes : 0;
}

/// The rows of one matrix. Copies are asynchronous, in groups that are the walk's.
template <int kPieces, bool kVectors, bool kStaged>
class TeamRows {
 public:
  using Member = TeamMember<kPieces, kVectors>;

  /// Takes its part of the block's `memory`, if rows are staged.
  __device__ TeamRows(const Member& member, const RowSource& source, uint4*& memory)
      : member_(member), source_(source), halves_(source.type == ElementType::kFloat32 ? 2 : 1), own_(memory) {
    if (kStaged && exists()) {
      own_ += threadIdx.x;
      memory += kRowPlaces * kPieces * halves_ * static_cast<int>(blockDim.x);
    }
  }

  __device__ bool exists() const { return source_.elements != nullptr; }

  /// Starts fetching a row, of which this thread's first piece is number `first` of the matrix.
  __device__ void fetch(int64_t first, int place) const {
    if constexpr (kStaged) {
      if (!exists()) {
        return;
      }
      const auto* const pieces = static_cast<const uint4*>(source_.elements);
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        if (member_.exists(p, 0)) {
          const uint4* const piece = pieces + (first + p * member_.teams().team) * halves_;
          __pipeline_memcpy_async(at(place, p, 0), piece, sizeof(uint4));
          if (halves_ == 2) {
            __pipeline_memcpy_async(at(place, p, 1), piece + 1, sizeof(uint4));
          }
        }
      }
    }
  }

  /// A row that has arrived; zeros for channels that do not exist.
  __device__ void take(int64_t row, int place, Piece (&pieces)[kPieces]) const {
    if constexpr (kStaged) {
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        pieces[p] = {};
        if (member_.exists(p, 0)) {
          RawPiece raw;
          raw.half[0] = as_vector(*at(place, p, 0));
          if (halves_ == 2) {
            raw.half[1] = as_vector(*at(place, p, 1));
          }
          convert(source_.type, raw, pieces[p]);
        }
      }
    } else {
      member_.load(source_, row, pieces);
    }
  }

 private:
  __device__ uint4* at(int place, int piece, int half) const {
    return own_ + ((place * kPieces + piece) * halves_ + half) * static_cast<int>(blockDim.x);
  }

  const Member& member_;
  const RowSource& source_;
  int halves_;  ///< vectors of a piece
  uint4* own_;
};

/// Calls `use(row, exists, place)` for each row of the team, for which `fetch(its first piece, place)` has been called;
/// all threads of a team have as many calls.
template <class Member, class Fetch, class Use>
__device__ void for_each_staged_row(const Member& member, Fetch&& fetch, Use&& use) {
  const RowTeams& teams = member.teams();
  const int64_t step = int64_t{teams.parts} * teams.teams;
  int64_t row = int64_t{member.part()} * teams.teams + member.team();
  int64_t piece = (row * teams.channels + member.channel(0)) / kPiece;
  if (row < teams.rows) {
    fetch(piece, 0);
  }
  __pipeline_commit();
  for (int place = 0; row - member.team() < teams.rows; row += step, place ^= 1) {
    piece += step * teams.channels / kPiece;
    if (row + step < teams.rows) {
      fetch(piece, place ^ 1);
    }
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncwarp();
    use(min(row, teams.rows - 1), row < teams.rows, place);
  }
}

}  // namespace actnn::cuda
