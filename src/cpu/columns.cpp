#include "actnn/cpu/columns.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "src/cpu/with_bits.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/columns.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/columns-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void quantize_columns(const QuantizeColumns& matrix, int64_t first, int64_t last) {
  reference::quantize_columns(matrix, first, last);
}
void dequantize_columns(const DequantizeColumns& matrix, int64_t first, int64_t last) {
  reference::dequantize_columns(matrix, first, last);
}

#else

namespace {

inline constexpr int64_t kMostRows = 256;  ///< of a block
inline constexpr int64_t kMostOctets = kMostRows / kOctet;
inline constexpr int64_t kParameterBytes = sizeof(GroupParameters);

/// Two neighbouring vectors of channels, a part of a strip.
inline constexpr int64_t kPair = 2 * hn::MaxLanes(FloatTag());
static_assert(kStripChannels % kPair == 0);

inline constexpr int64_t kCacheLine = 64;

/// Results of this size and more are written around the cache.
inline constexpr int64_t kStreamingBytes = int64_t{4} << 20;

/// Where a strip is.
struct StripPlace {
  int64_t block;
  int64_t first_row;
  int64_t rows;
  int64_t first_channel;
  int64_t channels;

  StripPlace(const ColumnLayout<int64_t>& layout, int64_t strip)
      : block(strip / strips_across(layout)),
        first_row(block * layout.group_rows),
        rows(layout.block_rows(block)),
        first_channel(strip % strips_across(layout) * kStripChannels),
        channels(std::min(kStripChannels, layout.channels - first_channel)) {}
};

/// The packed octets of a strip, channels next to one another.
template <int kBits>
struct StripOctets {
  static constexpr int kHalves = kOctet / kLaneRows32<kBits>;
  HWY_ALIGN uint32_t words[kHalves][kMostOctets][kStripChannels];

  /// Zeroes what is stored of rows from `rows` on.
  void clear_rows(int64_t rows, int64_t stored_octets) {
    for (int half = 0; half < kHalves; ++half) {
      std::fill(words[half][ceil_div(rows, kOctet)], words[half][stored_octets], 0u);
      if (rows % kOctet != 0) {
        const int64_t kept = std::clamp<int64_t>(rows % kOctet - half * kLaneRows32<kBits>, 0, kLaneRows32<kBits>);
        const auto mask = static_cast<uint32_t>((uint64_t{1} << (kept * kBits)) - 1);
        std::for_each_n(words[half][rows / kOctet], kStripChannels, [&](uint32_t& word) { word &= mask; });
      }
    }
  }

  void write_channel(int64_t channel, int64_t octets, uint8_t* HWY_RESTRICT codes) const {
    for (int64_t octet = 0; octet < octets; ++octet) {
      uint64_t packed = words[0][octet][channel];
      if constexpr (kHalves == 2) {
        packed |= static_cast<uint64_t>(words[1][octet][channel]) << (4 * kBits);
      }
      std::memcpy(codes + octet * kBits, &packed, kBits);
    }
  }

  void read_channel(int64_t channel, int64_t octets, const uint8_t* HWY_RESTRICT codes) {
    for (int64_t octet = 0; octet < octets; ++octet) {
      const uint64_t packed = load_bytes<kBits>(codes + octet * kBits);
      words[0][octet][channel] = static_cast<uint32_t>(packed);
      if constexpr (kHalves == 2) {
        words[1][octet][channel] = static_cast<uint32_t>(packed >> (4 * kBits));
      }
    }
  }
};

/// The elements of a strip as floats, and what is known of each channel. They are copied on the way: rows that are a
/// power of two apart would drive one another out of the cache.
struct Strip {
  HWY_ALIGN float elements[kMostRows * kStripChannels];
  HWY_ALIGN float smallest[kStripChannels];
  HWY_ALIGN float largest[kStripChannels];
  HWY_ALIGN float zero[kStripChannels];  ///< 0 where all elements are finite, else NaN
  HWY_ALIGN float minimum[kStripChannels];
  HWY_ALIGN float inverse_step[kStripChannels];
};

/// Reads the pair of channels from number `channel` of the strip on.
template <class Element>
HWY_INLINE void load_pair(const QuantizeColumns& matrix, const StripPlace& place, int64_t channel, Strip& strip) {
  const FloatTag df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t stride = matrix.layout.channels;
  const int64_t begin = place.first_row * stride + place.first_channel + channel;
  const auto* elements = static_cast<const Element*>(matrix.elements) + begin;
  auto low0 = hn::Inf(df);
  auto low1 = low0;
  auto high0 = hn::Neg(low0);
  auto high1 = high0;
  auto zero0 = hn::Zero(df);
  auto zero1 = zero0;
  const auto add_row = [&](const Element* source, int64_t row) {
    const auto a = load_floats(source);
    const auto b = load_floats(source + lanes);
    hn::Store(a, df, strip.elements + row * kStripChannels + channel);
    hn::Store(b, df, strip.elements + row * kStripChannels + channel + lanes);
    low0 = hn::Min(low0, a);
    low1 = hn::Min(low1, b);
    high0 = hn::Max(high0, a);
    high1 = hn::Max(high1, b);
    zero0 = hn::MulAdd(a, hn::Zero(df), zero0);
    zero1 = hn::MulAdd(b, hn::Zero(df), zero1);
  };
  // Lanes beyond the strip hold elements of other channels, or the next row's: all but those of the last rows exist.
  const int64_t beyond = begin + kPair - matrix.layout.rows * stride;
  const int64_t whole = beyond <= 0 ? std::min(place.rows, -beyond / stride + 1) : 0;
  for (int64_t row = 0; row < whole; ++row) {
    add_row(elements + row * stride, row);
  }
  for (int64_t row = whole; row < place.rows; ++row) {
    HWY_ALIGN Element padded[kPair] = {};
    std::copy_n(elements + row * stride, std::min(kPair, place.channels - channel), padded);
    add_row(padded, row);
  }
  hn::Store(low0, df, strip.smallest + channel);
  hn::Store(low1, df, strip.smallest + channel + lanes);
  hn::Store(high0, df, strip.largest + channel);
  hn::Store(high1, df, strip.largest + channel + lanes);
  hn::Store(zero0, df, strip.zero + channel);
  hn::Store(zero1, df, strip.zero + channel + lanes);
}

/// Chooses and stores the parameters of a group. Flattened: a call of code that is compiled for the baseline
/// instruction set mixes instruction encodings, which is slow. False if the group is not one for vectors.
template <int kBits>
HWY_FLATTEN bool fit_channel(const QuantizeColumns& matrix, const StripPlace& place, int64_t channel, Strip& strip) {
  if (is_nan(strip.zero[channel])) {
    return false;
  }
  const GroupParameters parameters =
      choose_grid({strip.smallest[channel], strip.largest[channel], /*all_finite=*/true}, kBits, matrix.type);
  const EncodingGrid grid = encoding_grid(parameters, matrix.type);
  strip.minimum[channel] = grid.minimum;
  strip.inverse_step[channel] = grid.inverse_step;
  const int64_t group = place.block * matrix.layout.channels + place.first_channel + channel;
  std::memcpy(matrix.parameters + group * kParameterBytes, &parameters, sizeof parameters);
  return !is_nan(grid.minimum);
}

/// Encodes an octet of rows of the vector of channels from number `channel` of the strip on.
template <int kBits>
HWY_INLINE void encode_octet(const Strip& strip, int64_t octet, int64_t channel, const ColumnNoise& noise,
                             StripOctets<kBits>& octets) {
  const FloatTag df;
  const Word32Tag d32;
  const float* rows = strip.elements + octet * kOctet * kStripChannels + channel;
  const auto minimum = hn::Load(df, strip.minimum + channel);
  const auto inverse_step = hn::Load(df, strip.inverse_step + channel);
  const auto integer = hn::Set(df, kIntegerInMantissa);
  const auto lowest_byte = hn::Set(d32, kNoises - 1);
  const auto code_bits = hn::Set(d32, highest_code(kBits) << kNoiseBits);
  Word32Vector packed[2] = {hn::Zero(d32), hn::Zero(d32)};
  for_rows_of_octet([&](auto row) {
    constexpr int kRow = decltype(row)::value;
    constexpr int kPlace = kCodePlace<kBits, kRow>;
    const auto scaled = hn::Mul(hn::Sub(hn::Load(df, rows + kRow * kStripChannels), minimum), inverse_step);
    const auto position = hn::BitCast(d32, hn::Add(scaled, integer));
    const auto noisy = hn::Add(position, noise_of_row<kRow>(noise, lowest_byte));
    const auto code = shift_up<kPlace - kNoiseBits>(hn::And(noisy, code_bits));
    packed[kRow / kLaneRows32<kBits>] = hn::Or(packed[kRow / kLaneRows32<kBits>], code);
  });
  for (int half = 0; half < StripOctets<kBits>::kHalves; ++half) {
    hn::Store(packed[half], d32, octets.words[half][octet] + channel);
  }
}

/// Asks for an octet of rows of the next strip: encoding computes much and loads nothing, and the processor does not
/// foresee loads that are a row apart. Beyond the end this does nothing. Inlined: GCC drops calls of a function that
/// only prefetches.
HWY_INLINE void prefetch_next_strip(const QuantizeColumns& matrix, const StripPlace& place, int64_t octet) {
  const int64_t element = element_size(matrix.type);
  const int64_t row_bytes = matrix.layout.channels * element;
  const auto begin = reinterpret_cast<uintptr_t>(matrix.elements) +
                     static_cast<uintptr_t>((place.first_row + octet * kOctet) * row_bytes +
                                            (place.first_channel + kStripChannels) * element);
  for (int64_t row = 0; row < kOctet; ++row) {
    for (int64_t line = 0; line < kStripChannels * element; line += kCacheLine) {
      hwy::Prefetch(reinterpret_cast<const uint8_t*>(begin + static_cast<uintptr_t>(row * row_bytes + line)));
    }
  }
}

/// Writes the codes of a strip.
template <int kBits>
void encode_strip(const QuantizeColumns& matrix, const StripPlace& place, const Strip& strip) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  const ColumnRandom random(matrix.random, matrix.layout);
  StripOctets<kBits> octets;
  ColumnNoise noise0 = constant_noise(kHalfStep);
  ColumnNoise noise1 = noise0;
  for (int64_t octet = 0; octet * kOctet < place.rows; ++octet) {
    prefetch_next_strip(matrix, place, octet);
    for (int64_t channel = 0; channel < place.channels; channel += kPair) {
      if (matrix.rounding != Rounding::kNearest) {
        random.draw(place.first_row / kOctet + octet, place.first_channel + channel, noise0, noise1);
      }
      encode_octet(strip, octet, channel, noise0, octets);
      encode_octet(strip, octet, channel + lanes, noise1, octets);
    }
  }
  const int64_t stored_octets = matrix.layout.block_octets(place.block);
  octets.clear_rows(place.rows, stored_octets);
  for (int64_t channel = 0; channel < place.channels; ++channel) {
    octets.write_channel(channel, stored_octets,
                         matrix.codes + matrix.layout.group_offset(place.block, place.first_channel + channel, kBits));
  }
}

template <int kBits, class Element>
void quantize_strip(const QuantizeColumns& matrix, const StripPlace& place, Strip& strip) {
  for (int64_t channel = 0; channel < place.channels; channel += kPair) {
    load_pair<Element>(matrix, place, channel, strip);
  }
  // Of the rest of the last octet, nothing is stored.
  std::fill(strip.elements + place.rows * kStripChannels,
            strip.elements + align_up(place.rows, kOctet) * kStripChannels, 0.0F);
  uint64_t others = 0;
  static_assert(kStripChannels <= 64);
  for (int64_t channel = 0; channel < place.channels; ++channel) {
    others |= static_cast<uint64_t>(!fit_channel<kBits>(matrix, place, channel, strip)) << channel;
  }
  encode_strip<kBits>(matrix, place, strip);
  for (; others != 0; others &= others - 1) {
    reference::quantize_column(matrix, place.block, place.first_channel + std::countr_zero(others));
  }
}

/// How the channels of a strip are decoded.
struct StripGrids {
  HWY_ALIGN float start[kStripChannels] = {};
  HWY_ALIGN float scale[kStripChannels] = {};
  HWY_ALIGN uint32_t nan_code[kStripChannels] = {};  ///< one that no element has, if none stands for NaN
  bool has_nan = false;                              ///< in any channel

  StripGrids(const DequantizeColumns& matrix, const StripPlace& place) {
    const int64_t group = place.block * matrix.layout.channels + place.first_channel;
    for (int64_t channel = 0; channel < place.channels; ++channel) {
      GroupParameters parameters;
      std::memcpy(&parameters, matrix.parameters + (group + channel) * kParameterBytes, sizeof parameters);
      const DecodingGrid grid(parameters, matrix.type, matrix.header.dithered());
      const bool has_nan_code = (parameters.step & kHasNanCode) != 0;
      start[channel] = grid.start;
      scale[channel] = grid.scale;
      nan_code[channel] = has_nan_code ? highest_code(matrix.layout.bits) : ~0u;
      has_nan = has_nan || has_nan_code || is_nan(grid.start);
    }
  }
};

/// Rows of a strip on their way to the matrix, so that whole cache lines are written.
template <class Element>
struct OctetRows {
  HWY_ALIGN Element elements[kOctet][kStripChannels];

  template <class Store>
  HWY_INLINE void write(const StripPlace& place, int64_t rows, Element* out, int64_t stride) const {
    const hn::ScalableTag<uint8_t> d8;
    constexpr int64_t kBytes = sizeof elements[0];
    for (int64_t row = 0; row < rows; ++row) {
      const auto* from = reinterpret_cast<const uint8_t*>(elements[row]);
      auto* to = reinterpret_cast<uint8_t*>(out + row * stride);
      if (place.channels < kStripChannels) {
        std::memcpy(to, from, static_cast<size_t>(place.channels) * sizeof(Element));
        continue;
      }
      for (int64_t byte = 0; byte < kBytes; byte += static_cast<int64_t>(hn::Lanes(d8))) {
        Store()(hn::Load(d8, from + byte), d8, to + byte);
      }
    }
  }
};

/// Decodes an octet of rows of the vector of channels from number `channel` of the strip on.
template <int kBits, class Element>
HWY_INLINE void decode_octet(const StripOctets<kBits>& octets, int64_t octet, int64_t channel, const StripGrids& grids,
                             const ColumnNoise& noise, OctetRows<Element>& rows) {
  const FloatTag df;
  const Word32Tag d32;
  const hn::RebindToSigned<Word32Tag> signed32;
  const auto start = hn::Load(df, grids.start + channel);
  const auto scale = hn::Load(df, grids.scale + channel);
  Word32Vector packed[2];
  for (int half = 0; half < StripOctets<kBits>::kHalves; ++half) {
    packed[half] = hn::Load(d32, octets.words[half][octet] + channel);
  }
  // What is below the code: 255 - noise.
  const ColumnNoise fraction{{hn::Not(noise.of_rows[0]), hn::Not(noise.of_rows[1])}};
  const auto lowest_byte = hn::Set(d32, kNoises - 1);
  const auto code_bits = hn::Set(d32, highest_code(kBits) << kNoiseBits);
  for_rows_of_octet([&](auto row) {
    constexpr int kRow = decltype(row)::value;
    const auto code =
        hn::And(shift_up<kNoiseBits - kCodePlace<kBits, kRow>>(packed[kRow / kLaneRows32<kBits>]), code_bits);
    const auto n = hn::Or(code, noise_of_row<kRow>(fraction, lowest_byte));
    auto value = hn::MulAdd(hn::ConvertTo(df, hn::BitCast(signed32, n)), scale, start);
    if (grids.has_nan) {
      const auto is_nan_code = hn::Eq(hn::ShiftRight<kNoiseBits>(code), hn::Load(d32, grids.nan_code + channel));
      value = canonical_nan(df, hn::IfThenElse(hn::RebindMask(df, is_nan_code), hn::NaN(df), value));
    }
    store_floats(value, rows.elements[kRow] + channel);
  });
}

template <int kBits, class Element>
void dequantize_strip(const DequantizeColumns& matrix, const StripPlace& place, bool around_cache) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  const StripGrids grids(matrix, place);
  StripOctets<kBits> octets;
  for (int64_t channel = 0; channel < place.channels; ++channel) {
    octets.read_channel(channel, ceil_div(place.rows, kOctet),
                        matrix.codes + matrix.layout.group_offset(place.block, place.first_channel + channel, kBits));
  }
  const ColumnRandom random(matrix.header.random(), matrix.layout);
  ColumnNoise noise0 = constant_noise(kNoises - 1);
  ColumnNoise noise1 = noise0;
  OctetRows<Element> decoded;
  auto* out = static_cast<Element*>(matrix.elements) + place.first_row * matrix.layout.channels + place.first_channel;
  for (int64_t row = 0; row < place.rows; row += kOctet) {
    for (int64_t channel = 0; channel < place.channels; channel += kPair) {
      if (matrix.header.dithered()) {
        random.draw((place.first_row + row) / kOctet, place.first_channel + channel, noise0, noise1);
      }
      decode_octet(octets, row / kOctet, channel, grids, noise0, decoded);
      decode_octet(octets, row / kOctet, channel + lanes, grids, noise1, decoded);
    }
    const int64_t rows = std::min(kOctet, place.rows - row);
    if (around_cache) {
      decoded.template write<StoreStreaming>(place, rows, out + row * matrix.layout.channels, matrix.layout.channels);
    } else {
      decoded.template write<StoreCached>(place, rows, out + row * matrix.layout.channels, matrix.layout.channels);
    }
  }
}

/// Whether to write the result around the cache: it is large, and its rows are whole cache lines.
bool streams(const DequantizeColumns& matrix) {
  const int64_t row_bytes = matrix.layout.channels * element_size(matrix.type);
  return matrix.layout.rows * row_bytes >= kStreamingBytes && row_bytes % kCacheLine == 0 &&
         reinterpret_cast<uintptr_t>(matrix.elements) % kCacheLine == 0;
}

}  // namespace

void quantize_columns(const QuantizeColumns& matrix, int64_t first, int64_t last) {
  with_element_type(matrix.type, [&]<class Element>(Element /*tag*/) {
    with_bits(matrix.layout.bits, [&](auto bits) {
      Strip strip;
      for (int64_t i = first; i < last; ++i) {
        quantize_strip<decltype(bits)::value, Element>(matrix, StripPlace(matrix.layout, i), strip);
      }
    });
  });
}

void dequantize_columns(const DequantizeColumns& matrix, int64_t first, int64_t last) {
  const bool around_cache = streams(matrix);
  with_element_type(matrix.type, [&]<class Element>(Element /*tag*/) {
    with_bits(matrix.layout.bits, [&](auto bits) {
      for (int64_t i = first; i < last; ++i) {
        dequantize_strip<decltype(bits)::value, Element>(matrix, StripPlace(matrix.layout, i), around_cache);
      }
    });
  });
  if (around_cache) {
    hwy::FlushStream();
  }
}

#endif

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "src/cpu/dispatch.h"

namespace actnn::cpu {

HWY_EXPORT(quantize_columns);
HWY_EXPORT(dequantize_columns);

void quantize_columns(const QuantizeColumns& matrix, int64_t first, int64_t last) {
  if (use_reference()) {
    return reference::quantize_columns(matrix, first, last);
  }
  HWY_DYNAMIC_DISPATCH(quantize_columns)(matrix, first, last);
}

void dequantize_columns(const DequantizeColumns& matrix, int64_t first, int64_t last) {
  if (use_reference()) {
    return reference::dequantize_columns(matrix, first, last);
  }
  HWY_DYNAMIC_DISPATCH(dequantize_columns)(matrix, first, last);
}

}  // namespace actnn::cpu
#endif
