#include "actnn/cpu/norm_act.h"

#include <algorithm>
#include <cstring>

#include "actnn/core/sides.h"
#include "src/cpu/with_bits.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/norm_act.cpp"
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/normalization-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void norm_act(const NormActForward& forward, int64_t first, int64_t last) { reference::norm_act(forward, first, last); }

#else

namespace {

/// The copies of a tile between the first pass, which finds them and their ranges, and the second, which encodes them.
struct Copies {
  HWY_ALIGN float copies[kPieceVectors][kMostRows][kLanes];
  HWY_ALIGN float smallest[kPieceChannels];
  HWY_ALIGN float largest[kPieceChannels];
  HWY_ALIGN float zero[kPieceChannels];  ///< 0 where all copies are finite, else NaN
  BlockWords<1> masks[kMostMasks][kPieceVectors];

  /// How a copy s becomes a code: (s - minimum) above, or below if that is larger, is its distance on the grid in units
  /// of 2^-8 of a step.
  HWY_ALIGN float minimum[kPieceChannels] = {};
  HWY_ALIGN float above[kPieceChannels] = {};
  HWY_ALIGN float below[kPieceChannels] = {};
  HWY_ALIGN uint32_t code_bits[kPieceChannels] = {};  ///< none where a group is unrepresentable
  bool all_finite;

  void clear(const Forward& forward, const Tile& tile) {
    std::fill_n(smallest, kPieceChannels, 0.0F);
    std::fill_n(largest, kPieceChannels, 0.0F);
    std::fill_n(zero, kPieceChannels, 0.0F);
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
    all_finite = true;
  }

  HWY_INLINE float* row(int64_t row, int64_t channel) { return copies[channel / kLanes][row]; }
  HWY_INLINE const float* row(int64_t row, int64_t channel) const { return copies[channel / kLanes][row]; }
};

/// The first pass over an octet of rows of the vector of channels from number `channel` of the tile on. `next` is how
/// far the next tile's elements are from these.
template <class Element, ActivationFunction kFunction>
HWY_INLINE void normalize_octet(const Forward& forward, const Tile& tile, int64_t octet, int64_t channel, int64_t next,
                                Copies& copies) {
  const FloatTag df;
  const Word32Tag d32;
  const int64_t stride = forward.arguments.layout.channels;
  const int64_t rows = std::min(kOctet, tile.rows - octet * kOctet);
  const int64_t lanes = tile.channels - channel;
  const int64_t begin = (tile.first_row + octet * kOctet) * stride + tile.first_channel + channel;
  const int64_t ahead = octet * kOctet + kRowsAhead < tile.rows ? kRowsAhead * stride : next;
  const auto row_of_word = static_cast<int>(octet % kWordOctets * kOctet);
  uint32_t* sides = copies.masks[0][channel / kLanes].words[octet / kWordOctets];
  uint32_t* between = copies.masks[1][channel / kLanes].words[octet / kWordOctets];
  float* out = copies.row(octet * kOctet, channel);
  const Normalization<Element, kFunction> normalization(forward, tile.first_channel + channel);
  Found found{hn::Load(df, copies.smallest + channel), hn::Load(df, copies.largest + channel),
              hn::Load(df, copies.zero + channel), row_of_word == 0 ? hn::Zero(d32) : hn::Load(d32, sides),
              row_of_word == 0 ? hn::Zero(d32) : hn::Load(d32, between)};
  if (HWY_LIKELY(rows == kOctet && lanes >= kLanes)) {
    for (int row = 0; row < kOctet; row += kRowsTogether) {
      normalization.template add_rows<kRowsTogether>(begin + row * stride, kLanes, ahead, row_of_word + row, found,
                                                     out + row * kLanes);
    }
  } else {
    for (int row = 0; row < rows; ++row) {
      normalization.template add_rows<1>(begin + row * stride, lanes, ahead, row_of_word + row, found,
                                         out + row * kLanes);
    }
  }
  hn::Store(found.smallest, df, copies.smallest + channel);
  hn::Store(found.largest, df, copies.largest + channel);
  hn::Store(found.zero, df, copies.zero + channel);
  hn::Store(found.sides, d32, sides);
  if constexpr (mask_count(kFunction) > 1) {
    hn::Store(found.between, d32, between);
  }
}

/// Writes y of a tile, and finds its copies and masks.
template <class Element, ActivationFunction kFunction>
void normalize_tile(const Forward& forward, const Tile& tile, Copies& copies) {
  copies.clear(forward, tile);
  const int64_t next = kRowsAhead * forward.arguments.layout.channels + tile.distance_of_next(forward.arguments.layout);
  for (int64_t octet = 0; octet * kOctet < tile.rows; ++octet) {
    for (int64_t channel = 0; channel < tile.channels; channel += kLanes) {
      normalize_octet<Element, kFunction>(forward, tile, octet, channel, next, copies);
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

/// Writes the words of the vector of channels from number `channel` of the tile on: codes of `width` bits, or a mask,
/// which begin at `offset`.
template <int kMostWidth>
void write_words(const NormActForward& arguments, const Tile& tile, int64_t channel, int64_t offset, int width,
                 const BlockWords<kMostWidth>& words) {
  const ColumnLayout<int64_t>& layout = arguments.layout;
  words.write(arguments.packed + offset + layout.group_offset(tile.block, tile.first_channel + channel, width),
              layout.block_octets(tile.block) * width, tile.channels - channel, tile.words() * width);
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
  const auto integer = hn::Set(df, kIntegerInMantissa);
  const auto lowest_byte = hn::Set(d32, kNoises - 1);
  const auto code_bits = bits_of_code<kBits>();
  const bool all_finite = copies.all_finite;
  for_rows_of_octet([&](auto row) {
    constexpr int kRow = decltype(row)::value;
    const auto s = hn::Load(df, rows + kRow * kLanes);
    const auto distance = hn::Sub(s, minimum);
    // Of a split channel, s has the sign of its side.
    const auto scaled = hn::Max(hn::Mul(distance, above), hn::Mul(distance, below));
    const auto position = hn::BitCast(d32, hn::Add(scaled, integer));
    auto noisy = hn::Add(position, noise_of_row<kRow>(noise, lowest_byte));
    if (HWY_UNLIKELY(!all_finite)) {
      noisy = hn::IfThenElse(hn::RebindMask(d32, hn::IsFinite(s)), noisy, code_bits);
    }
    put_code<kBits, kFirstRow + kRow>(noisy, code_bits, words);
  });
}

/// Writes the codes of the vector of channels from number `channel` of the tile on.
template <int kBits>
void encode_vector(const Forward& forward, const Tile& tile, int64_t channel, const Copies& copies) {
  const Word32Tag d32;
  const NormActForward& arguments = forward.arguments;
  const auto code_bits = hn::Load(d32, copies.code_bits + channel);
  BlockWords<kBits> codes;
  ColumnNoise noise[kWordOctets];
  std::fill_n(noise, kWordOctets, constant_noise(kHalfStep));
  for (int64_t word = 0; word < tile.words(); ++word) {
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
    const int64_t rows = tile.rows - word * kWordRows;
    for (int i = 0; i < kBits; ++i) {
      const auto stored = rows < kWordRows ? hn::And(code_bits, hn::Set(d32, bits_of_rows(rows, kBits, i))) : code_bits;
      hn::Store(hn::And(words[i], stored), d32, codes.words[word * kBits + i]);
    }
  }
  write_words(arguments, tile, channel, arguments.layout.codes(), kBits, codes);
}

template <class Element, ActivationFunction kFunction>
void forward_tile(const Forward& forward, const Tile& tile, Copies& copies) {
  const NormActForward& arguments = forward.arguments;
  normalize_tile<Element, kFunction>(forward, tile, copies);
  for (int mask = 0; mask < arguments.layout.masks; ++mask) {
    for (int64_t channel = 0; channel < tile.channels; channel += kLanes) {
      write_words(arguments, tile, channel, arguments.layout.mask(mask), 1, copies.masks[mask][channel / kLanes]);
    }
  }
  if (arguments.layout.bits == 0) {
    return;
  }
  fit_tile(forward, tile, copies);
  for (int64_t channel = 0; channel < tile.channels; channel += kLanes) {
    with_bits(arguments.layout.bits,
              [&](auto bits) { encode_vector<decltype(bits)::value>(forward, tile, channel, copies); });
  }
}

template <class Element, ActivationFunction kFunction>
void forward_pieces(const NormActForward& arguments, int64_t first, int64_t last) {
  const Forward forward(arguments);
  Copies copies;
  for (int64_t number = first; number < last; ++number) {
    forward_tile<Element, kFunction>(forward, Tile(arguments.layout, number), copies);
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
