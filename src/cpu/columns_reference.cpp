#include <cstring>

#include "actnn/cpu/columns.h"

namespace actnn::cpu::reference {
namespace {

template <class Element>
void quantize_group(const QuantizeColumns& matrix, int64_t block, int64_t channel) {
  const ColumnLayout<int64_t>& layout = matrix.layout;
  const int64_t first_row = block * layout.group_rows;
  const int64_t rows = layout.block_rows(block);
  const auto* column = static_cast<const Element*>(matrix.elements) + first_row * layout.channels + channel;

  GroupRange range;
  for (int64_t row = 0; row < rows; ++row) {
    range.add(to_float(column[row * layout.channels]));
  }
  const GroupParameters parameters = choose_grid(range, layout.bits, matrix.type);
  std::memcpy(matrix.parameters + (block * layout.channels + channel) * static_cast<int64_t>(sizeof parameters),
              &parameters, sizeof parameters);

  const EncodingGrid grid = encoding_grid(parameters, matrix.type);
  const OctetSteps steps(layout.bits);
  uint8_t* out = matrix.codes + layout.group_offset(block, channel, layout.bits);
  for (int64_t octet = 0; octet < layout.block_octets(block); ++octet, out += layout.bits) {
    uint64_t codes = 0;
    if (!is_nan(grid.minimum)) {
      const OctetNoise noise = matrix.random.octet(layout.noise_octet(first_row / kOctet + octet, channel));
      for (int k = 0; k < kOctet && octet * kOctet + k < rows; ++k) {
        const float x = to_float(column[(octet * kOctet + k) * layout.channels]);
        const uint64_t code =
            is_finite(x) ? encode(x, grid, matrix.rounding == Rounding::kNearest ? kHalfStep : noise[k], layout.bits)
                         : highest_code(layout.bits);
        codes |= code << (8 * k);
      }
    }
    const uint64_t packed = pack_octet(codes, steps);
    std::memcpy(out, &packed, static_cast<size_t>(layout.bits));
  }
}

template <class Element>
void dequantize_group(const DequantizeColumns& matrix, int64_t block, int64_t channel) {
  const ColumnLayout<int64_t>& layout = matrix.layout;
  const int64_t first_row = block * layout.group_rows;
  const int64_t rows = layout.block_rows(block);
  auto* column = static_cast<Element*>(matrix.elements) + first_row * layout.channels + channel;

  GroupParameters parameters;
  std::memcpy(&parameters,
              matrix.parameters + (block * layout.channels + channel) * static_cast<int64_t>(sizeof parameters),
              sizeof parameters);
  const bool dithered = matrix.header.dithered();
  const DecodingGrid grid(parameters, matrix.type, dithered);
  const bool has_nan_code = (parameters.step & kHasNanCode) != 0;
  const OctetSteps steps(layout.bits);
  const uint8_t* in = matrix.codes + layout.group_offset(block, channel, layout.bits);
  for (int64_t octet = 0; octet * kOctet < rows; ++octet, in += layout.bits) {
    uint64_t packed = 0;
    std::memcpy(&packed, in, static_cast<size_t>(layout.bits));
    const uint64_t codes = unpack_octet(packed, steps);
    const OctetNoise noise = matrix.header.random().octet(layout.noise_octet(first_row / kOctet + octet, channel));
    for (int k = 0; k < kOctet && octet * kOctet + k < rows; ++k) {
      const auto code = static_cast<uint32_t>((codes >> (8 * k)) & 0xFF);
      const float value = grid.value(dithered ? dithered_code(code, noise[k]) : undithered_code(code));
      const bool is_nan_code = has_nan_code && code == highest_code(layout.bits);
      store_rounded(is_nan_code || is_nan(grid.start) ? float_of(kNanFloat32) : value,
                    &column[(octet * kOctet + k) * layout.channels]);
    }
  }
}

/// Calls `body(block, channel)` for each group of pieces [first, last).
template <class Body>
void for_each_group(const ColumnLayout<int64_t>& layout, int64_t first, int64_t last, Body&& body) {
  for (int64_t number = first; number < last; ++number) {
    const ColumnPiece piece(layout, number);
    for (int64_t channel = piece.first_channel; channel < piece.first_channel + piece.channels; ++channel) {
      body(piece.block, channel);
    }
  }
}

}  // namespace

void quantize_columns(const QuantizeColumns& matrix, int64_t first, int64_t last) {
  with_element_type(matrix.type, [&]<class Element>(Element /*tag*/) {
    for_each_group(matrix.layout, first, last,
                   [&](int64_t block, int64_t channel) { quantize_group<Element>(matrix, block, channel); });
  });
}

void dequantize_columns(const DequantizeColumns& matrix, int64_t first, int64_t last) {
  with_element_type(matrix.type, [&]<class Element>(Element /*tag*/) {
    for_each_group(matrix.layout, first, last,
                   [&](int64_t block, int64_t channel) { dequantize_group<Element>(matrix, block, channel); });
  });
}

}  // namespace actnn::cpu::reference
