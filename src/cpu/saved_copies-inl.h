// The copies and masks that backward of a normalization with activation reads, in vectors whose lanes are channels.
// Included once per instruction set (Highway's foreach_target), hence the toggling include guard instead of #pragma
// once.
#if defined(ACTNN_CPU_SAVED_COPIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ACTNN_CPU_SAVED_COPIES_INL_H_
#undef ACTNN_CPU_SAVED_COPIES_INL_H_
#else
#define ACTNN_CPU_SAVED_COPIES_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "actnn/core/sides.h"
#include "src/cpu/norm_act-inl.h"
#include "src/cpu/with_bits.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

/// Rows of which noise is drawn together: half a word.
inline constexpr int64_t kHalfRows = 2 * kOctet;

inline PackedHeader header_of(const uint8_t* packed) {
  PackedHeader header{};
  if (packed) {
    std::memcpy(&header, packed, sizeof header);
  }
  return header;
}

/// How the channels of a tile are decoded: with one grid on each side of 0, which are the same where there is one.
struct TileGrids {
  HWY_ALIGN float start_above[kPieceChannels] = {};
  HWY_ALIGN float start_below[kPieceChannels] = {};
  HWY_ALIGN float scale_above[kPieceChannels] = {};
  HWY_ALIGN float scale_below[kPieceChannels] = {};
  /// As `get_code` gives it; one that no element has, if there is none.
  HWY_ALIGN uint32_t nan_code[kPieceChannels] = {};
  bool has_nan_code = false;  ///< in any channel

  void set(int64_t channel, const DecodingGrid& above, const DecodingGrid& below) {
    start_above[channel] = above.start;
    scale_above[channel] = above.scale;
    start_below[channel] = below.start;
    scale_below[channel] = below.scale;
  }
};

/// The copies of a tile. They are decoded by half words of rows of a vector of channels, which share a draw of noise.
template <class Element>
class SavedCopies {
 public:
  explicit SavedCopies(const NormActBackward& backward)
      : arguments_(backward),
        packed_(backward.normalized ? backward.normalized : backward.packed),
        layout_(backward.normalized ? backward.normalized_layout() : backward.layout),
        header_(header_of(packed_)),
        random_(header_.random(), layout_),
        maps_of_x_(backward.channels_of_x, backward.x ? backward.layout.channels : 0) {
    // Without masks, all elements are above 0, and none is known to be between jumps.
    for (int number = backward.layout.masks; number < kMostMasks; ++number) {
      for (BlockWords<1>& words : masks_[number]) {
        words.fill(number == 0 ? ~0u : 0u);
      }
    }
  }

  /// Reads what is packed of a tile; `channels` says of which kind its channels are.
  template <class Map>
  void begin_tile(const Tile& tile, const Map* channels) {
    if (!arguments_.x) {
      read_parameters(tile, channels);
    }
    for (int64_t channel = 0; channel < tile.channels; channel += kLanes) {
      if (!arguments_.x) {
        read_words(packed_ + layout_.codes(), layout_, layout_.bits, tile, channel, codes_[channel / kLanes]);
      }
      const ColumnLayout<int64_t>& layout = arguments_.layout;
      for (int mask = 0; mask < layout.masks; ++mask) {
        read_words(arguments_.packed + layout.mask(mask), layout, 1, tile, channel, masks_[mask][channel / kLanes]);
      }
    }
  }

  /// Finds the copies of half `half` of the word's rows, of the vector of channels from number `channel` of the tile
  /// on.
  void find(const Tile& tile, int64_t word, int half, int64_t channel) {
    if (arguments_.x) {
      load_x(tile, word, half, channel);
    } else {
      with_bits(layout_.bits, [&](auto bits) { decode<decltype(bits)::value>(tile, word, half, channel); });
    }
  }

  /// Those of row `row` of the half.
  HWY_INLINE FloatVector row(int64_t row, int64_t channel) const {
    return hn::Load(FloatTag(), copies_[channel / kLanes][row]);
  }

  /// The mask's bits of a word.
  HWY_INLINE Word32Vector mask(int number, int64_t word, int64_t channel) const {
    return hn::Load(Word32Tag(), masks_[number][channel / kLanes].words[word]);
  }

 private:
  /// The parameters of a tile. Flattened, as `fit_tile`.
  template <class Map>
  HWY_FLATTEN void read_parameters(const Tile& tile, const Map* channels) {
    grids_.has_nan_code = false;
    const uint8_t* in =
        packed_ + kHeaderBytes +
        (tile.block * layout_.channels + tile.first_channel) * static_cast<int64_t>(sizeof(GroupParameters));
    for (int64_t channel = 0; channel < tile.channels; ++channel, in += sizeof(GroupParameters)) {
      GroupParameters parameters;
      std::memcpy(&parameters, in, sizeof parameters);
      if (layout_.masks != 0 && channels[tile.first_channel + channel].linear == 0.0F) {
        const SideDecoder sides({parameters.minimum, parameters.step}, header_.dithered());
        grids_.set(channel, sides.above, sides.below);
      } else {
        const DecodingGrid grid(parameters, arguments_.type, header_.dithered());
        grids_.set(channel, grid, grid);
      }
      const bool has_nan_code = (parameters.step & kHasNanCode) != 0;
      grids_.nan_code[channel] = has_nan_code ? highest_code(layout_.bits) << kNoiseBits : ~0u;
      grids_.has_nan_code = grids_.has_nan_code || has_nan_code;
    }
  }

  template <int kMostWidth>
  static void read_words(const uint8_t* packed, const ColumnLayout<int64_t>& layout, int width, const Tile& tile,
                         int64_t channel, BlockWords<kMostWidth>& words) {
    words.read(packed + layout.group_offset(tile.block, tile.first_channel + channel, width),
               layout.block_octets(tile.block) * width, tile.channels - channel, tile.words() * width);
  }

  void load_x(const Tile& tile, int64_t word, int half, int64_t channel) {
    const FloatTag df;
    const int64_t first = word * kWordRows + half * kHalfRows;
    const int64_t rows = std::min(kHalfRows, tile.rows - first);
    const int64_t stride = layout_.channels;
    const auto* x =
        static_cast<const Element*>(arguments_.x) + (tile.first_row + first) * stride + tile.first_channel + channel;
    const auto scale = maps_of_x_.field(df, &NormActChannel::s_scale, tile.first_channel + channel);
    const auto shift = maps_of_x_.field(df, &NormActChannel::s_shift, tile.first_channel + channel);
    for (int64_t row = 0; row < rows; ++row) {
      const auto input = load_lanes(x + row * stride, tile.channels - channel);
      hn::Store(hn::Add(hn::Mul(scale, input), shift), df, copies_[channel / kLanes][row]);
    }
  }

  template <int kBits>
  void decode(const Tile& tile, int64_t word, int half, int64_t channel) {
    ColumnNoise noise[2];
    std::fill_n(noise, 2, constant_noise(kNoises - 1));
    if (header_.dithered()) {
      random_.draw_rows(tile.first_row / kOctet + word * kWordOctets + 2 * half, tile.first_channel + channel, noise[0],
                        noise[1]);
    }
    Word32Vector words[kBits];
    for (int i = 0; i < kBits; ++i) {
      words[i] = hn::Load(Word32Tag(), codes_[channel / kLanes].words[word * kBits + i]);
    }
    if (half == 0) {
      decode_octet<kBits, 0>(word, channel, words, noise[0]);
      decode_octet<kBits, 8>(word, channel, words, noise[1]);
    } else {
      decode_octet<kBits, 16>(word, channel, words, noise[0]);
      decode_octet<kBits, 24>(word, channel, words, noise[1]);
    }
  }

  /// Decodes an octet of rows, the kFirstRow-th and following of the word.
  template <int kBits, int kFirstRow>
  HWY_INLINE void decode_octet(int64_t word, int64_t channel, const Word32Vector (&words)[kBits],
                               const ColumnNoise& noise) {
    const FloatTag df;
    const Word32Tag d32;
    const hn::RebindToSigned<Word32Tag> signed32;
    const auto start_above = hn::Load(df, grids_.start_above + channel);
    const auto start_below = hn::Load(df, grids_.start_below + channel);
    const auto scale_above = hn::Load(df, grids_.scale_above + channel);
    const auto scale_below = hn::Load(df, grids_.scale_below + channel);
    const auto sides = mask(0, word, channel);
    const bool has_nan_code = grids_.has_nan_code;
    // What is below the code: 255 - noise.
    const ColumnNoise fraction{{hn::Not(noise.of_rows[0]), hn::Not(noise.of_rows[1])}};
    const auto lowest_byte = hn::Set(d32, kNoises - 1);
    const auto code_bits = bits_of_code<kBits>();
    for_rows_of_octet([&](auto row) {
      constexpr int kRow = decltype(row)::value;
      const auto code = get_code<kBits, kFirstRow + kRow>(words, code_bits);
      const auto n = hn::ConvertTo(df, hn::BitCast(signed32, hn::Or(code, noise_of_row<kRow>(fraction, lowest_byte))));
      const auto side = hn::RebindMask(df, hn::TestBit(sides, row_bits_.of_row(kFirstRow + kRow)));
      // Products are exact (core/rounding.h).
      auto value =
          hn::MulAdd(n, hn::IfThenElse(side, scale_above, scale_below), hn::IfThenElse(side, start_above, start_below));
      if (HWY_UNLIKELY(has_nan_code)) {
        const auto is_nan_code = hn::Eq(code, hn::Load(d32, grids_.nan_code + channel));
        value = hn::IfThenElse(hn::RebindMask(df, is_nan_code), hn::NaN(df), value);
      }
      hn::Store(value, df, copies_[channel / kLanes][kFirstRow % kHalfRows + kRow]);
    });
  }

  const NormActBackward& arguments_;
  const uint8_t* packed_;
  ColumnLayout<int64_t> layout_;
  PackedHeader header_;
  ColumnRandom random_;
  ChannelMaps<NormActChannel> maps_of_x_;
  RowBits row_bits_;
  TileGrids grids_;
  HWY_ALIGN float copies_[kPieceVectors][kHalfRows][kLanes];
  BlockWords<kMaxBits> codes_[kPieceVectors];
  BlockWords<1> masks_[kMostMasks][kPieceVectors];
};

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
