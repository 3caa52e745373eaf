// From the numbers of a piece to codes, in vectors whose lanes are channels. Included once per instruction set
// (Highway's foreach_target), hence the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_PIECE_ENCODER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_PIECE_ENCODER_INL_H_
#undef ACTNN_CPU_PIECE_ENCODER_INL_H_
#else
#define ACTNN_CPU_PIECE_ENCODER_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "actnn/core/sides.h"
#include "src/cpu/grids-inl.h"
#include "src/cpu/pieces-inl.h"
#include "src/cpu/with_bits.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// What is known of the numbers of a vector of channels.
struct ChannelRanges {
  FloatVector smallest;
  FloatVector largest;
  FloatVector zero;  ///< 0 where all are finite, else NaN

  HWY_INLINE void add(FloatVector numbers) {
    smallest = hn::Min(smallest, numbers);
    largest = hn::Max(largest, numbers);
    zero = hn::MulAdd(numbers, hn::Zero(FloatTag()), zero);
  }
};

/// Writes the words of the vector of channels from number `channel` of the piece on: codes of `width` bits that begin
/// at `codes`, or a mask.
template <int kMostWidth>
void write_words(const ColumnLayout<int64_t>& layout, const ColumnPiece& piece, int64_t channel, uint8_t* codes,
                 int width, const BlockWords<kMostWidth>& words) {
  words.write(codes + layout.group_offset(piece.block, piece.first_channel + channel, width),
              layout.block_octets(piece.block) * width, piece.channels - channel, piece.words() * width);
}

/// Encodes pieces. Whoever reads the numbers of one puts them here, and their ranges, before their codes are written.
class PieceEncoder {
 public:
  PieceEncoder(const ColumnLayout<int64_t>& layout, ElementType type, const RandomState& random, Rounding rounding)
      : layout_(layout), type_(type), random_(random, layout), rounding_(rounding), constants_(layout.bits) {}

  /// `is_split(channel)`, of all channels, says which have a grid on each side of 0.
  template <class IsSplit>
  void begin_piece(const ColumnPiece& piece, IsSplit&& is_split) {
    std::fill_n(smallest_, kPieceChannels, 0.0F);
    std::fill_n(largest_, kPieceChannels, 0.0F);
    std::fill_n(zero_, kPieceChannels, 0.0F);
    for (int64_t channel = 0; channel < piece.channels; ++channel) {
      split_[channel] = is_split(piece.first_channel + channel) ? ~0u : 0u;
      if (split_[channel] == 0) {
        smallest_[channel] = float_of(kInfinityFloat32);
        largest_[channel] = -float_of(kInfinityFloat32);
      }
    }
    // Of rows that do not exist, nothing is stored.
    for (auto& rows : numbers_) {
      std::fill(rows[0] + piece.rows * kLanes, rows[0] + piece.words() * kWordRows * kLanes, 0.0F);
    }
  }

  /// The numbers of row `row` of the vector of channels from number `channel` of the piece on; kLanes further are the
  /// next row's.
  HWY_INLINE float* row(int64_t row, int64_t channel) { return numbers_[channel / kLanes][row]; }

  HWY_INLINE ChannelRanges ranges(int64_t channel) const {
    const FloatTag df;
    return {hn::Load(df, smallest_ + channel), hn::Load(df, largest_ + channel), hn::Load(df, zero_ + channel)};
  }
  HWY_INLINE void set_ranges(int64_t channel, const ChannelRanges& ranges) {
    const FloatTag df;
    hn::Store(ranges.smallest, df, smallest_ + channel);
    hn::Store(ranges.largest, df, largest_ + channel);
    hn::Store(ranges.zero, df, zero_ + channel);
  }

  /// Chooses the parameters of the piece's groups, and writes them and the codes.
  void end_piece(const ColumnPiece& piece, const NextPiece& next, uint8_t* parameters, uint8_t* codes) {
    fit(piece, parameters);
    with_bits(layout_.bits, [&](auto bits) {
      for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
        if (layout_.masks != 0) {
          encode<decltype(bits)::value, true>(piece, next, channel, codes);
        } else {
          encode<decltype(bits)::value, false>(piece, next, channel, codes);
        }
      }
    });
  }

 private:
  /// Of a channel with numbers that are not finite: those among them that are.
  template <class Range>
  Range finite_range(const ColumnPiece& piece, int64_t channel) const {
    Range range;
    for (int64_t row = 0; row < piece.rows; ++row) {
      range.add(numbers_[channel / kLanes][row][channel % kLanes]);
    }
    return range;
  }

  /// Chooses the grids of all channels, and writes their parameters.
  HWY_NOINLINE void fit(const ColumnPiece& piece, uint8_t* parameters) {
    constexpr auto kBytes = static_cast<int64_t>(sizeof(GroupParameters));
    const FloatTag df;
    const Word32Tag d32;
    uint8_t* const out = parameters + (piece.block * layout_.channels + piece.first_channel) * kBytes;
    all_finite_ = true;
    for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
      const auto finite = hn::Not(hn::IsNaN(hn::Load(df, zero_ + channel)));
      const Grids<FloatTag> grids = grids_of(channel);
      hn::Store(grids.minimum, df, minimum_ + channel);
      hn::Store(grids.above, df, above_ + channel);
      hn::Store(grids.below, df, below_ + channel);
      hn::Store(hn::Set(d32, ~0u), d32, stored_bits_ + channel);
      const int64_t count = std::min(piece.channels - channel, kLanes);
      HWY_ALIGN uint32_t own_parameters[kLanes];
      hn::Store(grids.parameters, d32, own_parameters);
      std::memcpy(out + channel * kBytes, own_parameters, static_cast<size_t>(count * kBytes));
      const auto found = hn::And(finite, grids.representable);
      if (HWY_UNLIKELY(!hn::AllTrue(df, found))) {
        uint8_t bits[8] = {};
        hn::StoreMaskBits(df, found, bits);
        for (int64_t lane = 0; lane < count; ++lane) {
          if (((bits[lane / 8] >> (lane % 8)) & 1) == 0) {
            fit_channel(piece, channel + lane, out + (channel + lane) * kBytes);
          }
        }
      }
    }
  }

  /// Of the vector of channels from number `channel` of the piece on.
  HWY_INLINE Grids<FloatTag> grids_of(int64_t channel) const {
    const FloatTag df;
    const auto smallest = hn::Load(df, smallest_ + channel);
    const auto largest = hn::Load(df, largest_ + channel);
    const Grids<FloatTag> plain = choose_grids(df, smallest, largest, layout_.bits, type_);
    if (layout_.masks == 0) {
      return plain;
    }
    const Grids<FloatTag> sides = choose_side_grids(df, largest, hn::Neg(smallest), layout_.bits);
    const auto split_bits = hn::Load(Word32Tag(), split_ + channel);
    const auto split = hn::RebindMask(df, hn::MaskFromVec(split_bits));
    return {hn::IfThenElse(hn::MaskFromVec(split_bits), sides.parameters, plain.parameters),
            hn::IfThenElse(split, sides.minimum, plain.minimum), hn::IfThenElse(split, sides.above, plain.above),
            hn::IfThenElse(split, sides.below, plain.below),
            hn::Or(hn::And(split, sides.representable), hn::AndNot(split, plain.representable))};
  }

  /// Of one channel of which no grid was found in a vector. Flattened: a call of code that is compiled for the baseline
  /// instruction set mixes instruction encodings, which is slow.
  HWY_NOINLINE HWY_FLATTEN void fit_channel(const ColumnPiece& piece, int64_t channel, uint8_t* out) {
    const bool finite = !is_nan(zero_[channel]);
    all_finite_ = all_finite_ && finite;
    bool representable;
    if (split_[channel] != 0) {
      const SideSteps steps = choose_sides(
          finite ? SideRange{largest_[channel], -smallest_[channel]} : finite_range<SideRange>(piece, channel),
          layout_.bits);
      std::memcpy(out, &steps, sizeof steps);
      const SideEncoder encoder(steps);
      minimum_[channel] = 0.0F;
      above_[channel] = encoder.above;
      below_[channel] = -encoder.below;
      representable = steps.above != kNanBFloat16;
    } else {
      const GroupParameters chosen = choose_grid(
          finite ? GroupRange{smallest_[channel], largest_[channel]} : finite_range<GroupRange>(piece, channel),
          layout_.bits, type_);
      std::memcpy(out, &chosen, sizeof chosen);
      const EncodingGrid grid = encoding_grid(chosen, type_);
      minimum_[channel] = grid.minimum;
      above_[channel] = grid.inverse_step;
      below_[channel] = 0.0F;  // nothing is below the minimum
      representable = !is_nan(grid.minimum);
    }
    stored_bits_[channel] = representable ? ~0u : 0u;
  }

  /// Encodes an octet of rows, the kFirstRow-th and following of a word.
  template <int kBits, int kFirstRow, bool kSplit>
  HWY_INLINE void encode_octet(int64_t word, int64_t channel, const ColumnNoise& noise,
                               Word32Vector (&words)[kBits]) const {
    const FloatTag df;
    const Word32Tag d32;
    const auto minimum = hn::Load(df, minimum_ + channel);
    const auto above = hn::Load(df, above_ + channel);
    const auto below = hn::Load(df, below_ + channel);
    const float* rows = numbers_[channel / kLanes][word * kWordRows + kFirstRow];
    const auto integer = hn::Set(df, kIntegerInMantissa);
    const auto code_bits = constants_.code_bits();
    const auto noise_bits = constants_.noise_bits();
    const bool all_finite = all_finite_;
    for_rows_of_octet([&](auto row) {
      constexpr int kRow = decltype(row)::value;
      const auto number = hn::Load(df, rows + kRow * kLanes);
      const auto distance = hn::Sub(number, minimum);
      auto scaled = hn::Mul(distance, above);
      if constexpr (kSplit) {
        scaled = hn::Max(scaled, hn::Mul(distance, below));  // a number has the sign of its side
      }
      const auto position = hn::BitCast(d32, hn::Add(scaled, integer));
      auto noisy = hn::Add(position, noise_of_row<kRow>(noise, noise_bits));
      if (HWY_UNLIKELY(!all_finite)) {
        noisy = hn::IfThenElse(hn::RebindMask(d32, hn::IsFinite(number)), noisy, code_bits);
      }
      put_code<kBits, kFirstRow + kRow>(noisy, code_bits, words);
    });
  }

  /// Writes the codes of the vector of channels from number `channel` of the piece on: (number - minimum) above, or
  /// below if that is larger, is its distance on the grid in units of 2^-8 of a step.
  template <int kBits, bool kSplit>
  void encode(const ColumnPiece& piece, const NextPiece& next, int64_t channel, uint8_t* out) const {
    const Word32Tag d32;
    const auto stored_bits = hn::Load(d32, stored_bits_ + channel);
    BlockWords<kBits> codes;
    ColumnNoise noise[kWordOctets];
    std::fill_n(noise, kWordOctets, constant_noise(kHalfStep));
    for (int64_t word = 0; word < piece.words(); ++word) {
      next.ask_for(word, channel);
      if (rounding_ != Rounding::kNearest) {
        const int64_t octet = piece.first_row / kOctet + word * kWordOctets;
        random_.draw_rows(octet, piece.first_channel + channel, noise[0], noise[1]);
        random_.draw_rows(octet + 2, piece.first_channel + channel, noise[2], noise[3]);
      }
      Word32Vector words[kBits];
      std::fill_n(words, kBits, hn::Zero(d32));
      encode_octet<kBits, 0, kSplit>(word, channel, noise[0], words);
      encode_octet<kBits, 8, kSplit>(word, channel, noise[1], words);
      encode_octet<kBits, 16, kSplit>(word, channel, noise[2], words);
      encode_octet<kBits, 24, kSplit>(word, channel, noise[3], words);
      const int64_t rows = piece.rows - word * kWordRows;
      for (int i = 0; i < kBits; ++i) {
        const auto stored =
            rows < kWordRows ? hn::And(stored_bits, hn::Set(d32, bits_of_rows(rows, kBits, i))) : stored_bits;
        hn::Store(hn::And(words[i], stored), d32, codes.words[word * kBits + i]);
      }
    }
    write_words(layout_, piece, channel, out, kBits, codes);
  }

  ColumnLayout<int64_t> layout_;
  ElementType type_;
  ColumnRandom random_;
  Rounding rounding_;
  CodeConstants constants_;
  bool all_finite_ = true;
  HWY_ALIGN float numbers_[kPieceVectors][kMostRows][kLanes];
  HWY_ALIGN uint32_t split_[kPieceChannels] = {};  ///< all ones where there is a grid on each side of 0
  HWY_ALIGN float smallest_[kPieceChannels];
  HWY_ALIGN float largest_[kPieceChannels];
  HWY_ALIGN float zero_[kPieceChannels];
  HWY_ALIGN float minimum_[kPieceChannels] = {};
  HWY_ALIGN float above_[kPieceChannels] = {};
  HWY_ALIGN float below_[kPieceChannels] = {};
  HWY_ALIGN uint32_t stored_bits_[kPieceChannels] = {};  ///< none where a group is unrepresentable
};

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
