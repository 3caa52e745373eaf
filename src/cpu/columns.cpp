#include "actnn/cpu/columns.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/columns.cpp"
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/piece_decoder-inl.h"
#include "src/cpu/piece_encoder-inl.h"

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

constexpr auto kNoneIsSplit = [](int64_t /*channel*/) { return false; };

/// Reads an octet of rows of the vector of channels from number `channel` of the piece on.
template <class Element>
HWY_INLINE void read_octet(const QuantizeColumns& matrix, const ColumnPiece& piece, int64_t octet, int64_t channel,
                           PieceEncoder& encoder) {
  const FloatTag df;
  const int64_t stride = matrix.layout.channels;
  const int64_t rows = std::min(kOctet, piece.rows - octet * kOctet);
  const int64_t lanes = piece.channels - channel;
  const auto* elements = static_cast<const Element*>(matrix.elements) + (piece.first_row + octet * kOctet) * stride +
                         piece.first_channel + channel;
  float* numbers = encoder.row(octet * kOctet, channel);
  ChannelRanges ranges = encoder.ranges(channel);
  // Again: what was asked for while the last piece was encoded has partly left the cache if rows are pages apart.
  const int64_t ahead = elements_ahead(matrix.layout, piece, octet);
  for (int64_t row = 0; row < rows; ++row) {
    prefetch(elements + row * stride, ahead);
    const auto number = load_lanes(elements + row * stride, lanes);
    ranges.add(number);
    hn::Store(number, df, numbers + row * kLanes);
  }
  encoder.set_ranges(channel, ranges);
}

template <class Element>
void quantize_piece(const QuantizeColumns& matrix, const ColumnPiece& piece, PieceEncoder& encoder) {
  encoder.begin_piece(piece, kNoneIsSplit);
  for (int64_t octet = 0; octet * kOctet < piece.rows; ++octet) {
    for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
      read_octet<Element>(matrix, piece, octet, channel, encoder);
    }
  }
  const NextPiece next(matrix.layout, piece, static_cast<const Element*>(matrix.elements));
  encoder.end_piece(piece, next, matrix.parameters, matrix.codes);
}

/// Numbers of half a word's rows.
using HalfWord = float[kPieceVectors][kHalfRows][kLanes];

/// Writes `rows` of them. Row by row: neighbouring vectors share cache lines, and what is written around the cache
/// leaves the processor as whole ones.
template <class Element>
HWY_INLINE void write_rows(const HalfWord& numbers, int64_t rows, int64_t channels, bool has_nan, bool around_cache,
                           Element* out, int64_t stride) {
  const FloatTag df;
  for (int64_t row = 0; row < rows; ++row, out += stride) {
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      auto values = hn::Load(df, numbers[channel / kLanes][row]);
      if (HWY_UNLIKELY(has_nan)) {
        values = canonical_nan(df, values);
      }
      store_lanes(values, out + channel, channels - channel, around_cache);
    }
  }
}

template <class Element>
void dequantize_piece(const DequantizeColumns& matrix, const ColumnPiece& piece, bool around_cache,
                      PieceDecoder& decoder) {
  const auto no_sides = hn::Zero(Word32Tag());
  const int64_t stride = matrix.layout.channels;
  auto* out = static_cast<Element*>(matrix.elements) + piece.first_row * stride + piece.first_channel;
  HWY_ALIGN HalfWord numbers;
  decoder.begin_piece(piece, matrix.parameters, matrix.codes, kNoneIsSplit);
  for (int64_t row = 0; row < piece.rows; row += kHalfRows) {
    for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
      decoder.decode(piece, row / kWordRows, static_cast<int>(row % kWordRows / kHalfRows), channel, no_sides,
                     numbers[channel / kLanes]);
    }
    write_rows(numbers, std::min(kHalfRows, piece.rows - row), piece.channels, decoder.has_nan(), around_cache,
               out + row * stride, stride);
  }
}

}  // namespace

void quantize_columns(const QuantizeColumns& matrix, int64_t first, int64_t last) {
  PieceEncoder encoder(matrix.layout, matrix.type, matrix.random, matrix.rounding);
  with_element_type(matrix.type, [&]<class Element>(Element /*tag*/) {
    for (int64_t number = first; number < last; ++number) {
      quantize_piece<Element>(matrix, ColumnPiece(matrix.layout, number), encoder);
    }
  });
}

void dequantize_columns(const DequantizeColumns& matrix, int64_t first, int64_t last) {
  const bool around_cache = streams(matrix.layout.rows, matrix.layout.channels, matrix.type, matrix.elements, {});
  PieceDecoder decoder(matrix.layout, matrix.type, matrix.header);
  with_element_type(matrix.type, [&]<class Element>(Element /*tag*/) {
    for (int64_t number = first; number < last; ++number) {
      dequantize_piece<Element>(matrix, ColumnPiece(matrix.layout, number), around_cache, decoder);
    }
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
