#include "actnn/cpu/norm_act.h"

#include <algorithm>
#include <cstring>

#include "actnn/core/sides.h"
#include "src/cpu/with_bits.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/norm_act.cpp"
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/norm_act-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void norm_act(const NormActForward& forward, int64_t first, int64_t last) { reference::norm_act(forward, first, last); }

#else

namespace {

inline constexpr int kMostMasks = 2;

/// Channels that are worked on together where elements have 16 bits; half of them where they have 32. A row of them is
/// a cache line of elements, and what is known of all rows of a block stays in the first-level cache.
inline constexpr int64_t kMostTileChannels = 32;
template <class Element>
inline constexpr int64_t kTileChannels = std::max<int64_t>(kCacheLine / sizeof(Element), kLanes);
static_assert(kTileChannels<BFloat16> == kMostTileChannels && kPieceChannels % kMostTileChannels == 0);

/// What all pieces of a call share.
struct Forward {
  const NormActForward& arguments;
  ChannelMaps<NormActChannel> maps;
  bool around_cache;  ///< is y written
  ColumnRandom random;

  explicit Forward(const NormActForward& forward)
      : arguments(forward),
        maps(forward.channels, forward.layout.channels),
        around_cache(forward.y && streams(forward.layout.rows, forward.layout.channels, forward.type, forward.y,
                                          {forward.x, forward.residual})),
        random(forward.random, forward.layout) {}

  HWY_INLINE FloatVector field(float NormActChannel::*member, int64_t channel) const {
    return maps.field(FloatTag(), member, channel);
  }
  bool is_split(int64_t channel) const {
    return arguments.layout.masks != 0 && arguments.channels[channel].linear == 0.0F;
  }
};

/// The copies of a tile between the first pass, which finds them and their ranges, and the second, which encodes them.
struct Copies {
  HWY_ALIGN float copies[kMostTileChannels / kLanes][kMostRows][kLanes];
  HWY_ALIGN float smallest[kMostTileChannels];
  HWY_ALIGN float largest[kMostTileChannels];
  HWY_ALIGN float zero[kMostTileChannels];  ///< 0 where all copies are finite, else NaN
  WordTile<1, kMostTileChannels> masks[kMostMasks][kMostWords];

  /// How a copy s becomes a code: (s - minimum) above, or below if that is larger, is its distance on the grid in units
  /// of 2^-8 of a step.
  HWY_ALIGN float minimum[kMostTileChannels] = {};
  HWY_ALIGN float above[kMostTileChannels] = {};
  HWY_ALIGN float below[kMostTileChannels] = {};
  HWY_ALIGN uint32_t code_bits[kMostTileChannels] = {};  ///< none where a group is unrepresentable
  bool all_finite;

  void clear(const Forward& forward, const Tile& tile) {
    std::fill_n(smallest, kMostTileChannels, 0.0F);
    std::fill_n(largest, kMostTileChannels, 0.0F);
    std::fill_n(zero, kMostTileChannels, 0.0F);
    for (int64_t channel = 0; channel < tile.channels; ++channel) {
      if (!forward.is_split(tile.first_channel + channel)) {
        smallest[channel] = float_of(kInfinityFloat32);
        largest[channel] = -float_of(kInfinityFloat32);
      }
    }
    // Of rows that do not exist, nothing is stored.
    for (auto& rows : copies) {
      std::fill(rows[0] + tile.rows * kLanes, rows[0] + tile.words() * kWordRows * kLanes, 0.0F);
    }
    std::memset(masks, 0, sizeof masks);
    all_finite = true;
  }

  HWY_INLINE float* row(int64_t row, int64_t channel) { return copies[channel / kLanes][row]; }
  HWY_INLINE const float* row(int64_t row, int64_t channel) const { return copies[channel / kLanes][row]; }
};

/// The first pass over an octet of rows of the vector of channels from number `channel` of the tile on.
template <class Element, ActivationFunction kFunction>
HWY_INLINE void normalize_octet(const Forward& forward, const Tile& tile, int64_t octet, int64_t channel,
                                Copies& copies) {
  const FloatTag df;
  const Word32Tag d32;
  const NormActForward& arguments = forward.arguments;
  const int64_t rows = std::min(kOctet, tile.rows - octet * kOctet);
  const int64_t lanes = tile.channels - channel;
  const int64_t first = tile.first_channel + channel;
  const int64_t stride = arguments.layout.channels;
  const int64_t begin = (tile.first_row + octet * kOctet) * stride + first;
  const auto* elements = static_cast<const Element*>(arguments.x) + begin;
  const auto* residual = arguments.residual ? static_cast<const Element*>(arguments.residual) + begin : nullptr;
  auto* y = arguments.y ? static_cast<Element*>(arguments.y) + begin : nullptr;
  const auto z_scale = forward.field(&NormActChannel::z_scale, first);
  const auto z_shift = forward.field(&NormActChannel::z_shift, first);
  const auto s_scale = forward.field(&NormActChannel::s_scale, first);
  const auto s_shift = forward.field(&NormActChannel::s_shift, first);
  const auto zeros = hn::Zero(df);
  const auto linear = hn::Ne(forward.field(&NormActChannel::linear, first), zeros);
  const auto kept_below = hn::Ne(hn::Set(df, arguments.keeps_below ? 1.0F : 0.0F), zeros);
  auto smallest = hn::Load(df, copies.smallest + channel);
  auto largest = hn::Load(df, copies.largest + channel);
  auto zero = hn::Load(df, copies.zero + channel);
  auto sides = hn::Zero(d32);
  auto slopes = sides;
  float* out = copies.row(octet * kOctet, channel);
  const bool has_copies = arguments.layout.bits != 0;
  const bool around_cache = forward.around_cache;
  const BelowKink below(arguments.activation.slope);
  for_rows_of_octet([&](auto row) {
    constexpr int kRow = decltype(row)::value;
    if (kRow >= rows) {
      return;
    }
    const auto x = load_lanes(elements + kRow * stride, lanes);
    auto z = hn::Add(hn::Mul(z_scale, x), z_shift);
    if (residual) {
      z = hn::Add(z, load_lanes(residual + kRow * stride, lanes));
    }
    const auto side = hn::Gt(z, zeros);
    if (y) {
      store_lanes(activated<kFunction>(below, z, side), y + kRow * stride, lanes, around_cache);
    }
    const auto bit = hn::Set(d32, 1u << kRow);
    sides = hn::IfThenElse(hn::RebindMask(d32, side), hn::Or(sides, bit), sides);
    if constexpr (kFunction == ActivationFunction::kReLU6) {
      const auto on_slope = hn::And(side, hn::Lt(z, hn::Set(df, 6.0F)));
      slopes = hn::IfThenElse(hn::RebindMask(d32, on_slope), hn::Or(slopes, bit), slopes);
    }
    if (!has_copies) {
      return;
    }
    const auto copy = hn::Add(hn::Mul(s_scale, hn::IfThenElse(linear, x, z)), s_shift);
    const auto s = hn::IfThenElseZero(hn::Or(side, kept_below), copy);
    smallest = hn::Min(smallest, s);
    largest = hn::Max(largest, s);
    zero = hn::MulAdd(s, zeros, zero);
    hn::Store(s, df, out + kRow * kLanes);
  });
  hn::Store(smallest, df, copies.smallest + channel);
  hn::Store(largest, df, copies.largest + channel);
  hn::Store(zero, df, copies.zero + channel);
  const auto place = static_cast<int>(octet % kWordOctets * kOctet);
  const auto add = [&](WordTile<1, kMostTileChannels>& mask, Word32Vector bits) {
    uint32_t* word = mask.words[0] + channel;
    hn::Store(hn::Or(hn::Load(d32, word), hn::ShiftLeftSame(bits, place)), d32, word);
  };
  add(copies.masks[0][octet / kWordOctets], sides);
  if constexpr (kFunction == ActivationFunction::kReLU6) {
    add(copies.masks[1][octet / kWordOctets], slopes);
  }
}

/// Writes y of a tile, and finds its copies and masks.
template <class Element, ActivationFunction kFunction>
void normalize_tile(const Forward& forward, const Tile& tile, Copies& copies) {
  copies.clear(forward, tile);
  for (int64_t octet = 0; octet * kOctet < tile.rows; ++octet) {
    for (int64_t channel = 0; channel < tile.channels; channel += kLanes) {
      normalize_octet<Element, kFunction>(forward, tile, octet, channel, copies);
    }
  }
}

/// Of a channel with copies that are not finite: those among them that are.
template <class Range>
Range finite_range(const Tile& tile, int64_t channel, const Copies& copies) {
  Range range;
  for (int64_t row = 0; row < tile.rows; ++row) {
    range.add(copies.row(row, channel)[channel % kLanes]);
  }
  return range;
}

/// Chooses and stores the parameters of the groups. Flattened: a call of code that is compiled for the baseline
/// instruction set mixes instruction encodings, which is slow.
HWY_FLATTEN void fit_tile(const Forward& forward, const Tile& tile, Copies& copies) {
  const NormActForward& arguments = forward.arguments;
  const int bits = arguments.layout.bits;
  uint8_t* out =
      arguments.packed + kHeaderBytes +
      (tile.block * arguments.layout.channels + tile.first_channel) * static_cast<int64_t>(sizeof(GroupParameters));
  for (int64_t channel = 0; channel < tile.channels; ++channel, out += sizeof(GroupParameters)) {
    const bool finite = !is_nan(copies.zero[channel]);
    copies.all_finite = copies.all_finite && finite;
    bool representable;
    if (forward.is_split(tile.first_channel + channel)) {
      const SideSteps steps = choose_sides(finite ? SideRange{copies.largest[channel], -copies.smallest[channel]}
                                                  : finite_range<SideRange>(tile, channel, copies),
                                           bits);
      std::memcpy(out, &steps, sizeof steps);
      const SideEncoder encoder(steps);
      copies.minimum[channel] = 0.0F;
      copies.above[channel] = encoder.above;
      copies.below[channel] = -encoder.below;
      representable = steps.above != kNanBFloat16;
    } else {
      const GroupParameters parameters =
          choose_grid(finite ? GroupRange{copies.smallest[channel], copies.largest[channel]}
                             : finite_range<GroupRange>(tile, channel, copies),
                      bits, arguments.type);
      std::memcpy(out, &parameters, sizeof parameters);
      const EncodingGrid grid = encoding_grid(parameters, arguments.type);
      copies.minimum[channel] = grid.minimum;
      copies.above[channel] = grid.inverse_step;
      copies.below[channel] = 0.0F;  // nothing is below the minimum
      representable = !is_nan(grid.minimum);
    }
    copies.code_bits[channel] = representable ? ~0u : 0u;
  }
}

/// Encodes an octet of rows, the kFirstRow-th and following of a word.
template <int kBits, int kFirstRow>
HWY_INLINE void encode_octet(const Copies& copies, int64_t word, int64_t channel, const ColumnNoise& noise,
                             Word32Vector (&words)[kBits]) {
  const FloatTag df;
  const Word32Tag d32;
  const auto minimum = hn::Load(df, copies.minimum + channel);
  const auto above = hn::Load(df, copies.above + channel);
  const auto below = hn::Load(df, copies.below + channel);
  const float* rows = copies.row(word * kWordRows + kFirstRow, channel);
  for_rows_of_octet([&](auto row) {
    constexpr int kRow = decltype(row)::value;
    const auto s = hn::Load(df, rows + kRow * kLanes);
    const auto distance = hn::Sub(s, minimum);
    // Of a split channel, s has the sign of its side.
    const auto scaled = hn::Max(hn::Mul(distance, above), hn::Mul(distance, below));
    const auto position = hn::BitCast(d32, hn::Add(scaled, hn::Set(df, kIntegerInMantissa)));
    auto noisy = hn::Add(position, noise_of_row<kRow>(noise));
    if (HWY_UNLIKELY(!copies.all_finite)) {
      noisy =
          hn::IfThenElse(hn::RebindMask(d32, hn::IsFinite(s)), noisy, hn::Set(d32, highest_code(kBits) << kNoiseBits));
    }
    put_code<kBits, kFirstRow + kRow>(noisy, words);
  });
}

/// Writes the codes of a word of rows.
template <int kBits>
void encode_word(const Forward& forward, const Tile& tile, int64_t word, const Copies& copies) {
  const Word32Tag d32;
  const NormActForward& arguments = forward.arguments;
  const ColumnLayout<int64_t>& layout = arguments.layout;
  const int64_t rows = tile.rows - word * kWordRows;
  WordTile<kBits, kMostTileChannels> codes;
  ColumnNoise noise[kWordOctets];
  std::fill_n(noise, kWordOctets, constant_noise(kHalfStep));
  for (int64_t channel = 0; channel < tile.channels; channel += kLanes) {
    if (arguments.rounding != Rounding::kNearest) {
      const int64_t octet = tile.first_row / kOctet + word * kWordOctets;
      forward.random.draw_rows(octet, tile.first_channel + channel, noise[0], noise[1]);
      forward.random.draw_rows(octet + 2, tile.first_channel + channel, noise[2], noise[3]);
    }
    Word32Vector words[kBits];
    std::fill_n(words, kBits, hn::Zero(d32));
    encode_octet<kBits, 0>(copies, word, channel, noise[0], words);
    encode_octet<kBits, 8>(copies, word, channel, noise[1], words);
    encode_octet<kBits, 16>(copies, word, channel, noise[2], words);
    encode_octet<kBits, 24>(copies, word, channel, noise[3], words);
    const auto code_bits = hn::Load(d32, copies.code_bits + channel);
    for (int i = 0; i < kBits; ++i) {
      const auto stored = rows < kWordRows ? hn::And(code_bits, hn::Set(d32, bits_of_rows(rows, kBits, i))) : code_bits;
      hn::Store(hn::And(words[i], stored), d32, codes.words[i] + channel);
    }
  }
  const int64_t group_bytes = layout.block_octets(tile.block) * kBits;
  uint8_t* packed = arguments.packed + layout.codes() + layout.group_offset(tile.block, tile.first_channel, kBits) +
                    word * kWordOctets * kBits;
  for (int64_t channel = 0; channel < tile.channels; ++channel) {
    codes.template write_channel<kBits>(channel, packed + channel * group_bytes);
  }
}

void write_mask(const Forward& forward, const Tile& tile, int mask, const Copies& copies) {
  const ColumnLayout<int64_t>& layout = forward.arguments.layout;
  uint8_t* packed =
      forward.arguments.packed + layout.mask(mask) + layout.group_offset(tile.block, tile.first_channel, 1);
  for (int64_t channel = 0; channel < tile.channels; ++channel) {
    for (int64_t word = 0; word < tile.words(); ++word, packed += sizeof(uint32_t)) {
      copies.masks[mask][word].write_channel<1>(channel, packed);
    }
  }
}

template <class Element, ActivationFunction kFunction>
void forward_tile(const Forward& forward, const Tile& tile, Copies& copies) {
  const NormActForward& arguments = forward.arguments;
  normalize_tile<Element, kFunction>(forward, tile, copies);
  for (int mask = 0; mask < arguments.layout.masks; ++mask) {
    write_mask(forward, tile, mask, copies);
  }
  if (arguments.layout.bits == 0) {
    return;
  }
  fit_tile(forward, tile, copies);
  for (int64_t word = 0; word < tile.words(); ++word) {
    with_bits(arguments.layout.bits,
              [&](auto bits) { encode_word<decltype(bits)::value>(forward, tile, word, copies); });
  }
}

template <class Element, ActivationFunction kFunction>
void forward_pieces(const NormActForward& arguments, int64_t first, int64_t last) {
  const Forward forward(arguments);
  Copies copies;
  for (int64_t number = first; number < last; ++number) {
    const Tile piece(arguments.layout, number);
    for (int64_t channel = 0; channel < piece.channels; channel += kTileChannels<Element>) {
      forward_tile<Element, kFunction>(forward, piece.part(channel, kTileChannels<Element>), copies);
    }
  }
  if (forward.around_cache) {
    hwy::FlushStream();
  }
}

}  // namespace

void norm_act(const NormActForward& forward, int64_t first, int64_t last) {
  if (needs_reference(forward.activation.function)) {
    return reference::norm_act(forward, first, last);
  }
  with_element_type(forward.type, [&]<class Element>(Element /*tag*/) {
    with_function(forward.activation.function,
                  [&]<ActivationFunction kFunction>() { forward_pieces<Element, kFunction>(forward, first, last); });
  });
}

#endif

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "src/cpu/dispatch.h"

namespace actnn::cpu {

HWY_EXPORT(norm_act);

void norm_act(const NormActForward& forward, int64_t first, int64_t last) {
  if (use_reference()) {
    return reference::norm_act(forward, first, last);
  }
  HWY_DYNAMIC_DISPATCH(norm_act)(forward, first, last);
}

}  // namespace actnn::cpu
#endif
