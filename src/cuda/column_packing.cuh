#pragma once

#include <cstdint>
#include <type_traits>

#include "actnn/core/columns.h"
#include "actnn/core/rounding.h"
#include "actnn/core/sides.h"
#include "actnn/cuda/random.h"
#include "src/cuda/column_codes.cuh"
#include "src/cuda/column_slots.cuh"
#include "src/cuda/column_stage.cuh"
#include "src/cuda/column_tiles.cuh"
#include "src/cuda/octet.cuh"

/// \file
/// Packing of a tile's columns. Kernels visit their elements twice: for the extremes of groups, and for the codes. What
/// is packed is a monotonic function of what the extremes are of, so that they need not compute it. Numbers that are
/// not finite have another way, which is slow and rare.

namespace actnn::cuda {

/// What a thread packs: whole vectors of channels, so that there are many elements for each group whose grid is chosen.
template <class Element, bool kVectors>
using PackingPlace = ColumnPlace<Element, kVectors, kVectorElements<Element>>;

/// Where copies are packed to. Parts of the packed tensor are found once, on the host.
struct ColumnTarget {
  ColumnLayout<int64_t> layout;
  uint8_t* packed;
  RandomSource random;
  Rounding rounding;
  GroupParameters* parameters;
  uint8_t* codes;
  uint8_t* masks[2];

  ColumnTarget(const ColumnLayout<int64_t>& own_layout, uint8_t* own_packed, const RandomSource& own_random,
               Rounding own_rounding)
      : layout(own_layout),
        packed(own_packed),
        random(own_random),
        rounding(own_rounding),
        parameters(reinterpret_cast<GroupParameters*>(packed + kHeaderBytes)),
        codes(packed + layout.codes()),
        masks{packed + layout.mask(0), packed + layout.mask(1)} {}

  __device__ bool is_random() const { return rounding != Rounding::kNearest; }

  /// The state that noise is drawn from, as the header tells it.
  __device__ RandomState state() const { return PackedHeader::of(random.load(), rounding).random(); }

  /// What no tile writes: header and padding. By one block of the grid.
  __device__ void begin() const {
    if (blockIdx.x == 0) {
      if (threadIdx.x == 0) {
        const RandomState drawn = is_random() ? random.load() : RandomState{};
        *reinterpret_cast<PackedHeader*>(packed) = PackedHeader::of(drawn, rounding);
      }
      const int64_t end = kHeaderBytes + layout.groups() * static_cast<int64_t>(sizeof(GroupParameters));
      if (threadIdx.x < layout.codes() - end) {
        packed[end + threadIdx.x] = 0;
      }
    }
  }
};

/// How an element becomes a number on a grid: of a plain one the minimum and units per unit, of those of sides units
/// above and below, as fractions of 2^23. The sign of the second, which may be that of 0, tells them apart.
struct alignas(8) ColumnEncoder {
  float first;
  float second;

  __device__ bool has_sides() const { return (bits_of(second) >> 31) != 0; }
};

/// The largest of some numbers, and the largest of their negatives; NaN if one is NaN. Those of 16-bit elements are
/// halves of a word, of floats two words.
template <class Element>
struct Extremes {
  uint32_t word;

  __device__ static Extremes of_none() { return {both_halves(Pair<Element>::kInfinity | 0x8000U)}; }
  __device__ void join(const Extremes& other) {
    using Native = typename Pair<Element>::Native;
    word = to_word(__hmax2_nan(from_word<Native>(word), from_word<Native>(other.word)));
  }
  __device__ float largest() const { return Pair<Element>::to_floats(word).x; }
  __device__ float smallest() const { return -Pair<Element>::to_floats(word).y; }
};

template <>
struct alignas(8) Extremes<float> {
  float of_numbers;
  float of_negatives;

  __device__ static Extremes of_none() { return {-float_of(kInfinityFloat32), -float_of(kInfinityFloat32)}; }
  __device__ void add(float number) {
    of_numbers = max_or_nan(of_numbers, number);
    of_negatives = max_or_nan(of_negatives, -number);
  }
  __device__ void join(const Extremes& other) {
    of_numbers = max_or_nan(of_numbers, other.of_numbers);
    of_negatives = max_or_nan(of_negatives, other.of_negatives);
  }
  __device__ float largest() const { return of_numbers; }
  __device__ float smallest() const { return -of_negatives; }
};

/// The extremes of the eight elements of each of a thread's channels.
template <class Element, int kChannels>
__device__ void find_extremes(const RowVector<Element, kChannels> (&rows)[kRows],
                              Extremes<Element> (&extremes)[kChannels]) {
  if constexpr (std::is_same_v<Element, float>) {
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      extremes[k] = Extremes<float>::of_none();
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        extremes[k].add(rows[j][k]);
      }
    }
  } else {
    using Native = typename Pair<Element>::Native;
#pragma unroll
    for (int w = 0; w < RowVector<Element, kChannels>::kWords; ++w) {
      auto largest = from_word<Native>(rows[0].word[w]);
      auto smallest = largest;
#pragma unroll
      for (int j = 1; j < kRows; ++j) {
        const auto next = from_word<Native>(rows[j].word[w]);
        largest = __hmax2_nan(largest, next);
        smallest = __hmin2_nan(smallest, next);
      }
      const uint32_t negated = to_word(smallest) ^ kHalfSigns;
      extremes[2 * w] = {__byte_perm(to_word(largest), negated, 0x5410)};
      extremes[2 * w + 1] = {__byte_perm(to_word(largest), negated, 0x7632)};
    }
  }
}

/// The kinds of grids that a channel has.
enum class Grid { kPlain, kSides };

/// Steps of sides up to 2^96 have units that are normal numbers as fractions of 2^23.
inline constexpr uint16_t kMostFastStep = (127 + 96) << 7;

/// The extremes of a strip's tile, of numbers of type `Number`, in shared memory, and what becomes of them.
template <class Element, class Number, class Place>
class ColumnRanges {
 public:
  static constexpr int kChannels = Place::kChannels;

  /// A multiple of 16, for what is behind.
  static int bytes(const ColumnTiles& tiles, int64_t group_rows) {
    const int encoders = table_entries(tiles.width, tiles.thread_channels) * static_cast<int>(kTileRows / group_rows);
    return kExtremesBytes + static_cast<int>(align_up(encoders * int64_t{sizeof(ColumnEncoder)}, 16));
  }

  __device__ ColumnRanges(uint8_t* memory, const ColumnTiles& tiles, const Place& place, const ColumnTarget& target)
      : extremes_(reinterpret_cast<Extremes<Number>*>(memory)),
        encoders_(reinterpret_cast<ColumnEncoder*>(memory + kExtremesBytes)),
        tiles_(tiles),
        target_(target),
        group_octets_log2_(group_rows_log2(target.layout.group_rows) - 3),
        own_extremes_(place.octet_row() * kStripChannels + place.column() * kChannels),
        own_encoders_((place.octet_row() >> group_octets_log2_) * table_entries(tiles.width, tiles.thread_channels) +
                      table_entry<Place>(place.column(), 0)) {}

  /// The extremes of a thread's channels.
  __device__ void set(const Place& place, const Extremes<Number> (&extremes)[kChannels]) const {
    union {
      Extremes<Number> numbers[kChannels];
      uint4 words[kChannels * sizeof(Extremes<Number>) / sizeof(uint4)];
    } own;
    auto* const to = reinterpret_cast<uint4*>(extremes_ + own_extremes_);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      own.numbers[k] = place.has_rows() ? extremes[k] : Extremes<Number>::of_none();
    }
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof own.words / sizeof(uint4)); ++i) {
      to[i] = own.words[i];
    }
  }
  __device__ ColumnEncoder encoder(int k) const { return encoders_[own_encoders_ + k]; }

  /// Finds the parameters and encoders of a tile's groups from the extremes, by all threads, which must be synchronized
  /// before and after; those from `first_thread` on have a channel each. `copy_of(entry, extreme)` is what is packed,
  /// `grid_of(entry)` on which grids, of the channel with this entry in a `ChannelTable`. Returns whether one of this
  /// thread's groups needs the slow way.
  template <class CopyOf, class GridOf>
  __device__ bool find(int64_t tile, bool keeps_below, CopyOf&& copy_of, GridOf&& grid_of, int first_thread = 0) const {
    const ColumnLayout<int64_t>& layout = target_.layout;
    const int group_octets = 1 << group_octets_log2_;
    const int groups = kTileOctetRows >> group_octets_log2_;
    bool is_regular = true;
    // A thread has one channel or none.
    const int c = static_cast<int>(threadIdx.x) - first_thread;
    const int64_t channel = tiles_.first_channel() + c;
    if (0 <= c && c < tiles_.strip_channels() && channel < layout.channels) {
      const int entry = table_entry<Place>(c / kChannels, c % kChannels);
      const Extremes<Number>* of_row = extremes_ + c;
#pragma unroll 1
      for (int group = 0; group < groups; ++group) {
        const int64_t block = tile * groups + group;
        if (block * layout.group_rows >= layout.rows) {
          break;
        }
        Extremes<Number> extremes = Extremes<Number>::of_none();
#pragma unroll 1
        for (int octets = 0; octets < group_octets; octets += kLeastGroupOctets) {
#pragma unroll
          for (int i = 0; i < kLeastGroupOctets; ++i, of_row += kStripChannels) {
            extremes.join(*of_row);
          }
        }
        const float ends[2] = {copy_of(entry, extremes.largest()), copy_of(entry, extremes.smallest())};
        GroupParameters parameters{};
        bool regular = is_finite(ends[0]) && is_finite(ends[1]);
        if (grid_of(entry) == Grid::kSides) {
          SideRange range;
          range.add(ends[0]);
          range.add(ends[1]);
          range.below = keeps_below ? range.below : 0.0F;
          const SideSteps steps = choose_sides(range, layout.bits);
          parameters = {steps.above, steps.below};
          const SideEncoder encoder(steps);
          encoders_[group * table_entries(tiles_.width, kChannels) + entry] = {encoder.above / kIntegerInMantissa,
                                                                               -encoder.below / kIntegerInMantissa};
          regular = regular && max(steps.above, steps.below) <= kMostFastStep;
        } else {
          GroupRange range;
          range.add(ends[0]);
          range.add(ends[1]);
          parameters = choose_grid(range, layout.bits, kTypeOf<Element>);
          const EncodingGrid grid = encoding_grid(parameters, kTypeOf<Element>);
          encoders_[group * table_entries(tiles_.width, kChannels) + entry] = {grid.minimum, grid.inverse_step};
          regular = regular && !is_nan(grid.minimum);
        }
        if (regular) {
          target_.parameters[block * layout.channels + channel] = parameters;
        }
        is_regular = is_regular && regular;
      }
    }
    return !is_regular;
  }

 private:
  /// Of any strip, so that rows have fixed distances.
  static constexpr int kStripChannels = kMostWidth * kChannels;
  static constexpr int kExtremesBytes = kStripChannels * kTileOctetRows * static_cast<int>(sizeof(Extremes<Number>));
  static constexpr int kLeastGroupOctets = 64 / kRows;

  Extremes<Number>* extremes_;  ///< [octet rows, kStripChannels]
  ColumnEncoder* encoders_;     ///< [groups of a tile, entries of the strip's table]
  const ColumnTiles& tiles_;
  const ColumnTarget& target_;
  int group_octets_log2_;
  int own_extremes_;
  int own_encoders_;
};

/// The position of a number on a grid, in the bits of 2^23 + position. With sides, a saturating multiplication makes 0
/// of the distance on the other side.
template <Grid kGrid>
__device__ uint32_t position_in_column(float s, const ColumnEncoder& encoder) {
  if constexpr (kGrid == Grid::kSides) {
    const float above = __fmaf_rn(__saturatef(s * encoder.first), kIntegerInMantissa, kIntegerInMantissa);
    return bits_of(__fmaf_rn(__saturatef(s * encoder.second), kIntegerInMantissa, above));
  } else {
    return bits_of((s - encoder.first) * encoder.second + kIntegerInMantissa);
  }
}

/// A number that is packed, with its side of the kink.
struct SidedNumber {
  float s;
  bool side;
};

/// Parameters and codes of a tile, as the definition has them: a group a thread. `number(row, channel)` gives a
/// `SidedNumber`.
template <class Element, class GridOf, class Number>
__device__ __forceinline__ void pack_tile_slowly(const ColumnTiles& tiles, const ColumnTarget& target, int64_t tile,
                                                 GridOf grid_of, Number number) {
  const ColumnLayout<int64_t>& layout = target.layout;
  const int channels = tiles.strip_channels();
  const int groups = kTileRows >> group_rows_log2(layout.group_rows);
  const RandomState random = target.state();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < groups * channels; i += static_cast<int>(blockDim.x)) {
    const int64_t block = tile * groups + i / channels;
    const int64_t channel = tiles.first_channel() + i % channels;
    const int64_t first_row = block * layout.group_rows;
    if (first_row >= layout.rows || channel >= layout.channels) {
      continue;
    }
    const int64_t rows = layout.block_rows(block);
    GroupRange range;
    SideRange distances;
#pragma unroll 1
    for (int64_t row = 0; row < rows; ++row) {
      const float s = number(first_row + row, channel).s;
      range.add(s);
      distances.add(s);
    }
    const bool sided = grid_of(channel) == Grid::kSides;
    const SideSteps steps = choose_sides(distances, layout.bits);
    const GroupParameters parameters =
        sided ? GroupParameters{steps.above, steps.below} : choose_grid(range, layout.bits, kTypeOf<Element>);
    target.parameters[block * layout.channels + channel] = parameters;
    const SideEncoder side_encoder(steps);
    const EncodingGrid grid = encoding_grid(parameters, kTypeOf<Element>);
    const bool representable = sided ? steps.above != kNanBFloat16 : !is_nan(grid.minimum);
#pragma unroll 1
    for (int64_t octet = 0; octet < layout.block_octets(block); ++octet) {
      const OctetNoise noise = random.octet(layout.noise_octet(first_row / kOctet + octet, channel));
      uint64_t codes = 0;
#pragma unroll 1
      for (int64_t row = octet * kOctet; representable && row < min((octet + 1) * kOctet, rows); ++row) {
        const int k = static_cast<int>(row % kOctet);
        const SidedNumber of_row = number(first_row + row, channel);
        const uint32_t drawn = target.is_random() ? noise[k] : kHalfStep;
        const uint32_t code = !is_finite(of_row.s) ? highest_code(layout.bits)
                              : sided              ? side_encoder.encode(of_row.s, of_row.side, drawn, layout.bits)
                                                   : encode(of_row.s, grid, drawn, layout.bits);
        codes |= uint64_t{code} << (k * layout.bits);
      }
      uint8_t* to = target.codes + layout.group_offset(block, channel, layout.bits) + octet * layout.bits;
#pragma unroll 1
      for (int byte = 0; byte < layout.bits; ++byte) {
        to[byte] = static_cast<uint8_t>(codes >> (8 * byte));
      }
    }
  }
}

}  // namespace actnn::cuda
