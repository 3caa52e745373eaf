#pragma once

#include <cstdint>

#include "actnn/core/activation.h"
#include "actnn/core/norm_act.h"
#include "actnn/cuda/norm_act.h"
#include "src/cuda/column_codes.cuh"
#include "src/cuda/column_stage.cuh"
#include "src/cuda/column_tiles.cuh"

/// \file
/// What a normalization's backward reads of the elements of a tile: copies, unpacked or computed from the
/// normalization's input, and masks.

namespace actnn::cuda {

/// A packed matrix that is read.
struct ColumnSource {
  const uint8_t* packed;  ///< null: none
  ColumnLayout<int64_t> layout;

  __device__ PackedHeader header() const { return *reinterpret_cast<const PackedHeader*>(packed); }
  __device__ const GroupParameters* parameters() const {
    return reinterpret_cast<const GroupParameters*>(packed + kHeaderBytes);
  }
  __device__ const uint8_t* codes() const { return packed + layout.codes(); }
  __device__ const uint8_t* mask(int number) const { return packed + layout.mask(number); }
};

/// Arguments of the kernels.
template <class Element>
struct Backward {
  ColumnSource values;  ///< of the copies
  ColumnSource masks;
  bool sided;  ///< channels that are not linear have the grids of sides
  const Element* grad;
  const Element* second_grad;
  const Element* x;
  const NormActChannel* channels_of_x;
  float slope;

  explicit Backward(const NormActBackward& backward)
      : values{backward.packed, backward.layout},
        masks{backward.packed, backward.layout},
        sided(backward.layout.masks != 0),
        grad(static_cast<const Element*>(backward.grad)),
        second_grad(static_cast<const Element*>(backward.second_grad)),
        x(static_cast<const Element*>(backward.x)),
        channels_of_x(backward.channels_of_x),
        slope(backward.activation.function == ActivationFunction::kReLU6 ? 0.0F : backward.activation.slope) {
    if (backward.normalized) {
      values = {backward.normalized, backward.normalized_layout()};
      sided = false;
    }
    if (backward.x) {
      values = {nullptr, {backward.layout.rows, backward.layout.channels, backward.layout.group_rows, 0, 0}};
      sided = false;
    }
  }
};

/// A tile's parameters, codes and masks in shared memory, in two places by turns, so that one tile is fetched while
/// another is still read.
template <class Place>
class SavedStage {
 public:
  template <class Element>
  static int bytes(const ColumnTiles& tiles, const Backward<Element>& backward) {
    return 2 * Sizes(tiles, backward.values, backward.masks).all;
  }

  template <class Element>
  __device__ SavedStage(uint8_t* memory, const ColumnTiles& tiles, const Backward<Element>& backward)
      : memory_(memory),
        tiles_(tiles),
        values_(backward.values),
        masks_(backward.masks),
        sizes_(tiles, backward.values, backward.masks),
        group_octets_log2_(group_rows_log2(backward.values.layout.group_rows) - 3) {}

  __device__ int masks() const { return masks_.layout.masks; }

  /// Starts fetching a tile.
  __device__ void fetch(const Place& place, int64_t tile) {
    turn_ = sizes_.all - turn_;
    if (values_.packed) {
      codes().fetch(place, tile, values_.codes());
      fetch_parameters(tile);
    }
    for (int number = 0; number < masks(); ++number) {
      mask(number).fetch(place, tile, masks_.mask(number));
    }
    __pipeline_commit();
  }

  /// Waits for the tile that was fetched last. All threads take part.
  __device__ void wait() const {
    __pipeline_wait_prior(0);
    __syncthreads();
  }

  /// The codes and parameters of a thread's channel.
  __device__ CodeHalves codes_of(const Place& place, int k) const {
    return codes().load_octet(codes().octet(place, k));
  }
  __device__ GroupParameters parameters_of(const Place& place, int k) const {
    return parameters()[(place.octet_row() >> group_octets_log2_) * tiles_.strip_channels() +
                        place.column() * Place::kChannels + k];
  }
  /// Eight bits of a mask of a channel.
  __device__ uint32_t mask_of(const Place& place, int number, int k) const {
    return mask(number).load_mask(mask(number).octet(place, k));
  }

 private:
  /// Bytes of the parts of one place.
  struct Sizes {
    int codes = 0;
    int mask;
    int parameters = 0;
    int all;

    ACTNN_HOST_DEVICE Sizes(const ColumnTiles& tiles, const ColumnSource& values, const ColumnSource& masks)
        : mask(CodeStage::bytes(tiles, 1)) {
      if (values.packed) {
        codes = CodeStage::bytes(tiles, values.layout.bits);
        parameters = tiles.strip_channels() * (kTileRows >> group_rows_log2(values.layout.group_rows)) *
                     static_cast<int>(sizeof(GroupParameters));
      }
      all = codes + masks.layout.masks * mask + parameters;
    }
  };

  __device__ uint8_t* place() const { return memory_ + turn_; }
  __device__ CodeStage codes() const { return {place(), values_.layout, tiles_, values_.layout.bits}; }
  __device__ CodeStage mask(int number) const {
    return {place() + sizes_.codes + number * sizes_.mask, masks_.layout, tiles_, 1};
  }
  __device__ GroupParameters* parameters() const {
    return reinterpret_cast<GroupParameters*>(place() + sizes_.codes + masks() * sizes_.mask);
  }

  __device__ void fetch_parameters(int64_t tile) const {
    const ColumnLayout<int64_t>& layout = values_.layout;
    const int channels = tiles_.strip_channels();
    const int groups = kTileOctetRows >> group_octets_log2_;
    for (int c = static_cast<int>(threadIdx.x); c < channels; c += static_cast<int>(blockDim.x)) {
      for (int group = 0; group < groups; ++group) {
        const int64_t block = tile * groups + group;
        if (tiles_.first_channel() + c < tiles_.channels && block * layout.group_rows < layout.rows) {
          __pipeline_memcpy_async(parameters() + group * channels + c,
                                  values_.parameters() + block * tiles_.channels + tiles_.first_channel() + c,
                                  sizeof(GroupParameters));
        }
      }
    }
  }

  uint8_t* memory_;
  const ColumnTiles& tiles_;
  const ColumnSource& values_;
  const ColumnSource& masks_;
  Sizes sizes_;
  int group_octets_log2_;
  int turn_ = 0;  ///< where the place begins
};

/// Bit k: whether channel k of this thread is linear.
template <class Map, class Place>
__device__ uint32_t linear_channels(const Map* channels, const Place& place) {
  uint32_t linear = 0;
#pragma unroll
  for (int k = 0; k < Place::kChannels; ++k) {
    linear |= (channels[place.channel(k)].linear != 0.0F ? 1U : 0U) << k;
  }
  return linear;
}

/// What is known of the eight elements of a channel: the copies, and a bit of each for its side of the kink and for
/// whether the gradient passes as it is. Without masks all are above the kink, and gradients pass.
struct SavedOctet {
  float copies[kRows];
  uint32_t sides;
  uint32_t passes;
  uint32_t nans;  ///< copies that are NaN

  __device__ bool is_above(int j) const { return ((sides >> j) & 1U) != 0; }
  __device__ bool passes_gradient(int j) const { return ((passes >> j) & 1U) != 0; }
};

/// The elements of a thread. `visit` calls `body(i, octet)` for channels pair and pair + 1 (i = 0, 1).
template <class Element, bool kVectors, bool kFromX>
class ColumnCopies {
 public:
  using Place = ColumnPlace<Element, kVectors>;
  using Row = typename Place::Row;

  /// What belongs to channels, in shared memory.
  struct Table {
    ChannelTable<float2> maps;  ///< from x

    __device__ void load(const Backward<Element>& backward, const ColumnTiles& tiles) {
      if constexpr (kFromX) {
        maps.load(tiles, [&](int64_t channel) {
          const NormActChannel& map = backward.channels_of_x[channel];
          return make_float2(map.s_scale, map.s_shift);
        });
      }
    }
  };

  __device__ ColumnCopies(const Backward<Element>& backward, const Table& table, uint32_t linear)
      : backward_(backward),
        table_(table),
        sided_(backward.sided ? ~linear : 0),
        noise_(kFromX ? PackedHeader{0, PackedHeader::kUndithered} : backward.values.header()),
        decoder_(backward.values.layout.bits, noise_.dithered()) {}

  /// Loads what is not in the stage.
  __device__ void load(const Place& place) {
    if constexpr (kFromX) {
      place.template load<true>(backward_.x, x_);
    }
  }

  template <class Body>
  __device__ void visit(const SavedStage<Place>& stage, const Place& place, int pair, Body&& body) const {
    PhiloxBlock below{};
    if constexpr (!kFromX) {
      below = noise_.below_codes(place.noise_block(pair));
    }
    const int masks = stage.masks();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = pair + i;
      SavedOctet octet{};
      octet.sides = masks == 0 ? 0xFFU : stage.mask_of(place, 0, k);
      octet.passes = masks == 2 ? stage.mask_of(place, 1, k) : octet.sides;
      if constexpr (kFromX) {
        const float2 map = table_.maps.of(place, k);
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const float scaled = map.x * x_[j][k];
          octet.copies[j] = scaled + map.y;
        }
        octet.nans = 0;
      } else {
        const CodeHalves codes = stage.codes_of(place, k);
        const GroupParameters parameters = stage.parameters_of(place, k);
        const uint32_t own[2] = {below.word[2 * i], below.word[2 * i + 1]};
        if (((sided_ >> k) & 1U) != 0) {
          octet.nans =
              decoder_.template decode<true>(codes, own, parameters, kTypeOf<Element>, octet.sides, octet.copies);
        } else {
          octet.nans =
              decoder_.template decode<false>(codes, own, parameters, kTypeOf<Element>, octet.sides, octet.copies);
        }
      }
      body(i, octet);
    }
  }

 private:
  const Backward<Element>& backward_;
  const Table& table_;
  uint32_t sided_;  ///< bit k: whether channel k has the grids of sides
  NoiseSource noise_;
  OctetDecoder decoder_;
  Row x_[kFromX ? kRows : 1];
};

/// The gradient of z: smooth activations with z, the others by whether the gradient passes.
template <ActivationFunction kFunction, Below kBelow>
__device__ float gradient_of_z(float gradient, bool passes, float slope, float z) {
  if constexpr (is_smooth(kFunction)) {
    return smooth_gradient(gradient, activate<kFunction>(z).derivative);
  } else {
    return leaky_relu_gradient(gradient, passes, kBelow == Below::kFlat ? 0.0F : slope);
  }
}

/// Calls `body.operator()<kFunction, kBelow>()`; activations without a smooth derivative are one, told apart by masks.
template <class Body>
void with_gradient_function(const FusedActivation& activation, Body&& body) {
  using enum ActivationFunction;
  if (activation.function == kSiLU) {
    return body.template operator()<kSiLU, Below::kFlat>();
  }
  if (activation.function == kHardswish) {
    return body.template operator()<kHardswish, Below::kFlat>();
  }
  if (activation.function == kLeakyReLU && activation.slope != 0.0F) {
    return body.template operator()<kLeakyReLU, Below::kSloped>();
  }
  body.template operator()<kLeakyReLU, Below::kFlat>();
}

}  // namespace actnn::cuda
