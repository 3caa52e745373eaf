// From the codes of a piece to numbers, in vectors whose lanes are channels. Included once per instruction set
// (Highway's foreach_target), hence the toggling include guard instead of #pragma once.
#if defined(ACTNN_CPU_PIECE_DECODER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_PIECE_DECODER_INL_H_
#undef ACTNN_CPU_PIECE_DECODER_INL_H_
#else
#define ACTNN_CPU_PIECE_DECODER_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "actnn/core/sides.h"
#include "src/cpu/pieces-inl.h"
#include "src/cpu/with_bits.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// Rows that are decoded together, and of which noise is drawn together: half a word.
inline constexpr int64_t kHalfRows = 2 * kOctet;

/// Reads the words of a vector of channels, codes of `width` bits that begin at `codes`, or a mask.
template <int kMostWidth>
void read_words(const ColumnLayout<int64_t>& layout, const ColumnPiece& piece, int64_t channel, const uint8_t* codes,
                int width, BlockWords<kMostWidth>& words) {
  words.read(codes + layout.group_offset(piece.block, piece.first_channel + channel, width),
             layout.block_octets(piece.block) * width, piece.channels - channel, piece.words() * width);
}

/// Decodes pieces, by half words of rows of a vector of channels.
class PieceDecoder {
 public:
  /// Numbers are those of elements of `type`.
  PieceDecoder(const ColumnLayout<int64_t>& layout, ElementType type, const PackedHeader& header)
      : layout_(layout),
        type_(type),
        dithered_(header.dithered()),
        random_(header.random(), layout),
        constants_(layout.bits) {}

  /// Reads what is packed of a piece. `is_split(channel)`, of all channels, says which have a grid on each side of 0.
  template <class IsSplit>
  void begin_piece(const ColumnPiece& piece, const uint8_t* parameters, const uint8_t* codes, IsSplit&& is_split) {
    read_parameters(piece, parameters, is_split);
    for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
      read_words(layout_, piece, channel, codes, layout_.bits, codes_[channel / kLanes]);
    }
  }

  /// Whether there are NaNs among the numbers of the piece, which need not be canonical.
  bool has_nan() const { return has_nan_; }

  /// Decodes half `half` of the rows of word `word`, of the vector of channels from number `channel` of the piece on.
  /// `sides` are the bits of the word's rows; they do not matter if nothing is split.
  void decode(const ColumnPiece& piece, int64_t word, int half, int64_t channel, Word32Vector sides,
              float (&numbers)[kHalfRows][kLanes]) const {
    with_bits(layout_.bits, [&](auto bits) {
      if (layout_.masks != 0) {
        decode_half<decltype(bits)::value, true>(piece, word, half, channel, sides, numbers);
      } else {
        decode_half<decltype(bits)::value, false>(piece, word, half, channel, sides, numbers);
      }
    });
  }

 private:
  void set_grid(int64_t channel, const DecodingGrid& above, const DecodingGrid& below) {
    start_above_[channel] = above.start;
    scale_above_[channel] = above.scale;
    start_below_[channel] = below.start;
    scale_below_[channel] = below.scale;
  }

  /// Flattened, as `PieceEncoder::fit_channel`.
  template <class IsSplit>
  HWY_FLATTEN void read_parameters(const ColumnPiece& piece, const uint8_t* parameters, IsSplit&& is_split) {
    constexpr auto kBytes = static_cast<int64_t>(sizeof(GroupParameters));
    const uint8_t* in = parameters + (piece.block * layout_.channels + piece.first_channel) * kBytes;
    has_nan_code_ = false;
    has_nan_ = false;
    for (int64_t channel = 0; channel < piece.channels; ++channel, in += kBytes) {
      GroupParameters group;
      std::memcpy(&group, in, sizeof group);
      if (is_split(piece.first_channel + channel)) {
        const SideDecoder sides({group.minimum, group.step}, dithered_);
        set_grid(channel, sides.above, sides.below);
      } else {
        const DecodingGrid grid(group, type_, dithered_);
        set_grid(channel, grid, grid);
      }
      const bool has_nan_code = (group.step & kHasNanCode) != 0;
      nan_code_[channel] = has_nan_code ? highest_code(layout_.bits) << kNoiseBits : ~0u;
      has_nan_code_ = has_nan_code_ || has_nan_code;
      has_nan_ = has_nan_ || has_nan_code || is_nan(start_above_[channel]);
    }
  }

  template <int kBits, bool kSplit>
  void decode_half(const ColumnPiece& piece, int64_t word, int half, int64_t channel, Word32Vector sides,
                   float (&numbers)[kHalfRows][kLanes]) const {
    ColumnNoise noise[2];
    std::fill_n(noise, 2, constant_noise(kNoises - 1));
    if (dithered_) {
      random_.draw_rows(piece.first_row / kOctet + word * kWordOctets + 2 * half, piece.first_channel + channel,
                        noise[0], noise[1]);
    }
    Word32Vector words[kBits];
    for (int i = 0; i < kBits; ++i) {
      words[i] = hn::Load(Word32Tag(), codes_[channel / kLanes].words[word * kBits + i]);
    }
    if (half == 0) {
      decode_octet<kBits, 0, kSplit>(channel, words, noise[0], sides, numbers);
      decode_octet<kBits, 8, kSplit>(channel, words, noise[1], sides, numbers);
    } else {
      decode_octet<kBits, 16, kSplit>(channel, words, noise[0], sides, numbers);
      decode_octet<kBits, 24, kSplit>(channel, words, noise[1], sides, numbers);
    }
  }

  /// Decodes an octet of rows, the kFirstRow-th and following of the word.
  template <int kBits, int kFirstRow, bool kSplit>
  HWY_INLINE void decode_octet(int64_t channel, const Word32Vector (&words)[kBits], const ColumnNoise& noise,
                               Word32Vector sides, float (&numbers)[kHalfRows][kLanes]) const {
    const FloatTag df;
    const hn::RebindToSigned<Word32Tag> signed32;
    const auto start_above = hn::Load(df, start_above_ + channel);
    const auto start_below = hn::Load(df, start_below_ + channel);
    const auto scale_above = hn::Load(df, scale_above_ + channel);
    const auto scale_below = hn::Load(df, scale_below_ + channel);
    // What is below the code: 255 - noise.
    const ColumnNoise fraction{{hn::Not(noise.of_rows[0]), hn::Not(noise.of_rows[1])}};
    for_rows_of_octet([&](auto row) {
      constexpr int kRow = decltype(row)::value;
      const auto code = get_code<kBits, kFirstRow + kRow>(words, constants_.code_bits());
      const auto position = hn::Or(code, noise_of_row<kRow>(fraction, constants_.noise_bits()));
      auto scale = scale_above;
      auto start = start_above;
      if constexpr (kSplit) {
        const auto side = hn::RebindMask(df, hn::TestBit(sides, row_bits_.of_row(kFirstRow + kRow)));
        scale = hn::IfThenElse(side, scale_above, scale_below);
        start = hn::IfThenElse(side, start_above, start_below);
      }
      // Products are exact (core/rounding.h).
      const auto number = hn::MulAdd(hn::ConvertTo(df, hn::BitCast(signed32, position)), scale, start);
      hn::Store(number, df, numbers[kFirstRow % kHalfRows + kRow]);
    });
    if (HWY_UNLIKELY(has_nan_code_)) {
      put_nans<kBits, kFirstRow>(channel, words, numbers);
    }
  }

  template <int kBits, int kFirstRow>
  HWY_NOINLINE void put_nans(int64_t channel, const Word32Vector (&words)[kBits],
                             float (&numbers)[kHalfRows][kLanes]) const {
    const FloatTag df;
    const auto nan_code = hn::Load(Word32Tag(), nan_code_ + channel);
    for_rows_of_octet([&](auto row) {
      constexpr int kRow = decltype(row)::value;
      const auto code = get_code<kBits, kFirstRow + kRow>(words, constants_.code_bits());
      float* number = numbers[kFirstRow % kHalfRows + kRow];
      hn::Store(hn::IfThenElse(hn::RebindMask(df, hn::Eq(code, nan_code)), hn::NaN(df), hn::Load(df, number)), df,
                number);
    });
  }

  ColumnLayout<int64_t> layout_;
  ElementType type_;
  bool dithered_;
  ColumnRandom random_;
  CodeConstants constants_;
  RowBits row_bits_;
  bool has_nan_code_ = false;
  bool has_nan_ = false;
  // Of channels with one grid those of both sides are the same.
  HWY_ALIGN float start_above_[kPieceChannels] = {};
  HWY_ALIGN float start_below_[kPieceChannels] = {};
  HWY_ALIGN float scale_above_[kPieceChannels] = {};
  HWY_ALIGN float scale_below_[kPieceChannels] = {};
  HWY_ALIGN uint32_t nan_code_[kPieceChannels] = {};  ///< as `get_code` gives it; one that no element has, if none is
  BlockWords<kMaxBits> codes_[kPieceVectors];
};

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
