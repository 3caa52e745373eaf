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

#include "src/cpu/norm_act-inl.h"
#include "src/cpu/piece_decoder-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

inline PackedHeader header_of(const uint8_t* packed) {
  PackedHeader header{};
  if (packed) {
    std::memcpy(&header, packed, sizeof header);
  }
  return header;
}

/// The copies of a piece. They are decoded by half words of rows of a vector of channels, which share a draw of noise.
template <class Element>
class SavedCopies {
 public:
  explicit SavedCopies(const NormActBackward& backward)
      : arguments_(backward),
        packed_(backward.normalized ? backward.normalized : backward.packed),
        layout_(backward.normalized ? backward.normalized_layout() : backward.layout),
        decoder_(layout_, backward.type, header_of(packed_)),
        maps_of_x_(backward.channels_of_x, backward.x ? backward.layout.channels : 0) {
    // Without masks, all elements are above 0, and none is known to be between jumps.
    for (int number = backward.layout.masks; number < kMostMasks; ++number) {
      for (BlockWords<1>& words : masks_[number]) {
        words.fill(number == 0 ? ~0u : 0u);
      }
    }
  }

  /// Reads what is packed of a piece; `channels` says of which kind its channels are.
  template <class Map>
  void begin_piece(const ColumnPiece& piece, const Map* channels) {
    if (!arguments_.x) {
      decoder_.begin_piece(piece, packed_ + kHeaderBytes, packed_ + layout_.codes(),
                           [&](int64_t channel) { return layout_.masks != 0 && channels[channel].linear == 0.0F; });
    }
    const ColumnLayout<int64_t>& layout = arguments_.layout;
    for (int64_t channel = 0; channel < piece.channels; channel += kLanes) {
      for (int mask = 0; mask < layout.masks; ++mask) {
        read_words(layout, piece, channel, arguments_.packed + layout.mask(mask), 1, masks_[mask][channel / kLanes]);
      }
    }
  }

  /// Finds the copies of half `half` of the word's rows, of the vector of channels from number `channel` of the piece
  /// on.
  void find(const ColumnPiece& piece, int64_t word, int half, int64_t channel) {
    if (arguments_.x) {
      load_x(piece, word, half, channel);
    } else {
      decoder_.decode(piece, word, half, channel, mask(0, word, channel), copies_[channel / kLanes]);
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
  void load_x(const ColumnPiece& piece, int64_t word, int half, int64_t channel) {
    const FloatTag df;
    const int64_t first = word * kWordRows + half * kHalfRows;
    const int64_t rows = std::min(kHalfRows, piece.rows - first);
    const int64_t stride = layout_.channels;
    const auto* x =
        static_cast<const Element*>(arguments_.x) + (piece.first_row + first) * stride + piece.first_channel + channel;
    const auto scale = maps_of_x_.field(df, &NormActChannel::s_scale, piece.first_channel + channel);
    const auto shift = maps_of_x_.field(df, &NormActChannel::s_shift, piece.first_channel + channel);
    for (int64_t row = 0; row < rows; ++row) {
      const auto input = load_lanes(x + row * stride, piece.channels - channel);
      hn::Store(hn::Add(hn::Mul(scale, input), shift), df, copies_[channel / kLanes][row]);
    }
  }

  const NormActBackward& arguments_;
  const uint8_t* packed_;
  ColumnLayout<int64_t> layout_;
  PieceDecoder decoder_;
  ChannelMaps<NormActChannel> maps_of_x_;
  HWY_ALIGN float copies_[kPieceVectors][kHalfRows][kLanes];
  BlockWords<1> masks_[kMostMasks][kPieceVectors];
};

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif  // include guard
