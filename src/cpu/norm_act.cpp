#include "actnn/cpu/norm_act.h"

#include <algorithm>

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

/// The masks of a piece.
using Masks = BlockWords<1>[kMostMasks][kPieceVectors];

/// The first pass over an octet of rows of the vector of channels from number `channel` of the piece on.
template <class Element, ActivationFunction kFunction>
HWY_INLINE void normalize_octet(const Forward& forward, const ColumnPiece& piece, int64_t octet, int64_t channel,
                                PieceEncoder& encoder, Masks& masks) {
  const Word32Tag d32;
  const int64_t stride = forward.arguments.layout.channels;
  const int64_t rows = std::min(kOctet, piece.rows - octet * kOctet);
  const int64_t lanes = piece.channels - channel;
  const int64_t begin = (piece.first_row + octet * kOctet) * stride + piece.first_channel + channel;
  const int64_t ahead = elements_ahead(forward.arguments.layout, piece, octet);
  const auto row_of_word = static_cast<int>(octet % kWordOctets * kOctet);
  uint32_t* sides = masks[0][channel / kLanes].words[octet / kWordOctets];
  uint32_t* between = masks[1][channel / kLanes].words[octet / kWordOctets];
  float* out = encoder.row(octet * kOctet, channel);
  const Normalization<Element, kFunction> normalization(forward, piece.first_channel + channel);
  Found found{encoder.ranges(channel), row_of_word == 0 ? hn::Zero(d32) : hn::Load(d32, sides),
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
  encoder.set_ranges(channel, found.ranges);
  hn::Store(found.sides, d32, sides);
  if constexpr (mask_count(kFunction) > 1) {
    hn::Store(found.between, d32, between);
  }
}

/// Writes y of a piece, masks and codes.
template <class Element, ActivationFunction kFunction>
void forward_piece(const Forward& forward, const ColumnPiece& piece, PieceEncoder& encoder, Masks& masks) {
  const ColumnLayout<int64_t>& layout = forward.arguments.layout;
  uint8_t* const packed = forward.arguments.packed;
  encoder.begin_piece(piece, [&](int64_t channel) { return forward.is_split(channel); });
  for (int64_t octet = 0; octet * kOctet < piece.rows; ++octet) {
    for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
      normalize_octet<Element, kFunction>(forward, piece, octet, channel, encoder, masks);
    }
  }
  for (int mask = 0; mask < layout.masks; ++mask) {
    for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
      write_words(layout, piece, channel, packed + layout.mask(mask), 1, masks[mask][channel / kLanes]);
    }
  }
  if (layout.bits != 0) {
    // Reading writes y, too, and moves the next piece's first rows already: to ask for the rest is slower.
    encoder.end_piece(piece, NextPiece(), packed + kHeaderBytes, packed + layout.codes());
  }
}

template <class Element, ActivationFunction kFunction>
void forward_pieces(const NormActForward& arguments, int64_t first, int64_t last) {
  const Forward forward(arguments);
  PieceEncoder encoder(arguments.layout, arguments.type, arguments.random, arguments.rounding);
  Masks masks;
  for (int64_t number = first; number < last; ++number) {
    forward_piece<Element, kFunction>(forward, ColumnPiece(arguments.layout, number), encoder, masks);
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
