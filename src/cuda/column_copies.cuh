#pragma once

#include <cstdint>
#include <type_traits>

#include "actnn/core/activation.h"
#include "actnn/core/norm_act.h"
#include "actnn/cuda/norm_act.h"
#include "src/cuda/column_codes.cuh"
#include "src/cuda/column_stage.cuh"
#include "src/cuda/column_tiles.cuh"
#include "src/cuda/row_stage.cuh"
#include "src/cuda/warp_columns.cuh"

/// \file
/// What a normalization's backward reads of the elements of a tile: copies, unpacked or computed from the
/// normalization's input, and masks.

namespace actnn::cuda {

/// A packed matrix that is read. Its parts are found once, on the host.
struct ColumnSource {
  ColumnLayout<int64_t> layout;
  const PackedHeader* header;  ///< null: there is none
  const GroupParameters* parameters;
  const uint8_t* codes;
  const uint8_t* masks[2];
  /// What copies are multiplied with and what is added, of each channel, where kernels are made for it; null: 1 and 0.
  const float* weight = nullptr;
  const float* bias = nullptr;

  ColumnSource(const uint8_t* packed, const ColumnLayout<int64_t>& own_layout)
      : layout(own_layout),
        header(reinterpret_cast<const PackedHeader*>(packed)),
        parameters(reinterpret_cast<const GroupParameters*>(packed + kHeaderBytes)),
        codes(packed + layout.codes()),
        masks{packed + layout.mask(0), packed + layout.mask(1)} {}
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
      values = ColumnSource(backward.normalized, backward.normalized_layout());
      sided = false;
    }
    if (backward.x) {
      values =
          ColumnSource(nullptr, {backward.layout.rows, backward.layout.channels, backward.layout.group_rows, 0, 0});
      sided = false;
    }
  }
};

/// Where the parts of a warp's stage are, in bytes; found at launch. What is decoded with comes first.
struct StageParts {
  StageShape values;
  StageShape mask;
  int parameters = 0;
  int codes = 0;
  int sides = 0;       ///< the first mask; without masks, ones in its place
  int passes;          ///< the last mask, likewise
  int mask_channel;    ///< bytes from a channel to the next
  int strip;           ///< its channels, at a multiple of 16
  int rows;            ///< elements under way, likewise
  int all;             ///< likewise
  int decoding_group;  ///< entries of a group

  /// `row_bytes`: of the elements under way, a multiple of 16.
  template <class Element>
  StageParts(const WarpColumns& columns, const Backward<Element>& backward, int row_bytes = 0)
      : values(columns, backward.values.layout.group_rows, backward.values.layout.bits),
        mask(columns, backward.masks.layout.group_rows, 1),
        decoding_group((kPackedChannels + 1) << columns.width_log2) {
    if (backward.values.header) {
      parameters = values.groups() * decoding_group * static_cast<int>(sizeof(DecodingColumn));
      codes = parameters + values.groups() * kWarp * static_cast<int>(sizeof(GroupParameters));
      sides = codes + values.bytes();
    }
    const int masks = backward.masks.layout.masks;
    passes = sides + (masks > 1 ? mask.bytes() : 0);
    mask_channel = masks == 0 ? 0 : mask.channel;
    strip = masks == 0 ? sides + kTileRows : passes + mask.bytes();
    rows = strip + static_cast<int>(sizeof(StripChannels));
    all = rows + row_bytes;
  }

  /// Of a block, as many as have the memory.
  int warps() const {
    int warps = kUnpackingWarps;
    while (warps > 1 && warps * all > most_shared_memory()) {
      warps /= 2;
    }
    return warps;
  }
};

/// Launches a kernel whose warps have such stages.
template <class... Parameters, class... Arguments>
cudaError_t launch_warps(void (*kernel)(Parameters...), const WarpColumns& columns, const StageParts& parts,
                         cudaStream_t stream, Arguments... arguments) {
  const int warps = parts.warps();
  const int bytes = warps * parts.all;
  const cudaError_t error = allow_shared_memory(kernel, bytes);
  if (error != cudaSuccess) {
    return error;
  }
  return launch_kernel(kernel, columns.blocks(warps), static_cast<unsigned>(warps * kWarp), bytes, stream,
                       arguments...);
}

/// A tile's codes and masks and what they are decoded with, in the shared memory of a warp. All threads of the warp
/// take part in everything; each has a channel of the strip's parameters, if there are so many.
template <class Element, class Place, bool kAffine>
class SavedStage {
 public:
  /// `is_linear(channel)`: whether a channel has a plain grid where others have those of sides.
  template <class IsLinear>
  __device__ SavedStage(uint4* memory, const WarpColumns& columns, const Backward<Element>& backward,
                        const StageParts& parts, IsLinear&& is_linear)
      : memory_(reinterpret_cast<uint8_t*>(memory) + static_cast<int>(threadIdx.x / kWarp) * parts.all),
        rows_(columns.rows),
        channels_(columns.channels),
        backward_(backward),
        parts_(parts) {
    static_assert(kPackedChannels << WarpColumns::kMostWidthLog2 <= kWarp);
    const int64_t first = columns.first_channel();
    const auto count = static_cast<int>(min(columns.channels - first, int64_t{columns.strip_channels()}));
    const bool sided = lane_index() < count && backward.sided && !is_linear(first + lane_index());
    const uint32_t all_sided = __ballot_sync(~0U, sided);
    if (lane_index() == 0) {
      *reinterpret_cast<StripChannels*>(memory_ + parts_.strip) = {static_cast<int>(first), count, all_sided};
    }
    if (masks() == 0) {
      reinterpret_cast<uint2*>(memory_ + parts_.sides)[lane_index()] = make_uint2(~0U, ~0U);
    }
  }

  /// Starts fetching a tile, in the place of the one before.
  __device__ void fetch(int tile) const {
    __syncwarp();
    if (has_codes()) {
      fetch(tile, parts_.values, backward_.values.codes, parts_.codes);
      if (own_exists()) {
        int group_of_all = tile * parts_.values.groups();
        const GroupParameters* from =
            backward_.values.parameters + group_of_all * channels_ + (strip().first + lane_index());
#pragma unroll 1
        for (int group = 0; group < parts_.values.groups(); ++group, ++group_of_all, from += channels_) {
          if ((int64_t{group_of_all} << (parts_.values.group_octets_log2 + 3)) < rows_) {
            __pipeline_memcpy_async(own_parameters(group), from, sizeof(GroupParameters));
          }
        }
      }
    }
    if (masks() > 0) {
      fetch(tile, parts_.mask, backward_.masks.masks[0], parts_.sides);
    }
    if (masks() > 1) {
      fetch(tile, parts_.mask, backward_.masks.masks[1], parts_.passes);
    }
    __pipeline_commit();
  }

  /// Waits for the tile, while the last group of `cp.async` may be under way. Returns whether copies may be NaN.
  __device__ bool wait(bool dithered) const {
    __pipeline_wait_prior(1);
    __syncwarp();
    bool may_be_nan = false;
    if (has_codes() && own_exists()) {
      const bool sided = ((strip().sided >> lane_index()) & 1U) != 0;
      DecodingColumn* to =
          decoding() + table_entry<Place>(lane_index() / Place::kChannels, lane_index() % Place::kChannels);
#pragma unroll 1
      for (int group = 0; group < parts_.values.groups(); ++group, to += parts_.decoding_group) {
        const GroupParameters own = *own_parameters(group);
        *to = sided ? DecodingColumn::sided(own, dithered) : DecodingColumn::plain(own, kTypeOf<Element>, dithered);
        if constexpr (kAffine) {
          const int64_t channel = strip().first + lane_index();
          to->scale(backward_.values.weight == nullptr ? 1.0F : backward_.values.weight[channel],
                    backward_.values.bias == nullptr ? 0.0F : backward_.values.bias[channel]);
        }
        may_be_nan = may_be_nan || to->may_be_nan();
      }
    }
    __syncwarp();
    return __any_sync(~0U, may_be_nan) != 0;
  }

  /// Of the warp, for elements under way.
  __device__ uint8_t* rows() const { return memory_ + parts_.rows; }

  /// What a thread has of its first channel in a pass; that of its others follows at the distances of `StageParts`.
  struct Octets {
    int codes;       ///< word of the octet's first bits
    uint32_t shift;  ///< bits in front of them
    int mask;
    int decoding;
  };
  __device__ Octets octets(const Place& place) const {
    const int octet = parts_.values.octet(place.column(), place.octet_row());
    return {octet / 4, static_cast<uint32_t>(octet) % 4 * 8,
            masks() == 0 ? place.octet_row() : parts_.mask.octet(place.column(), place.octet_row()),
            (place.octet_row() >> parts_.values.group_octets_log2) * parts_.decoding_group +
                table_entry<Place>(place.column(), 0)};
  }
  /// The three words that the octet of channel k is in.
  __device__ const uint32_t* words(const Octets& octets, int k) const {
    return reinterpret_cast<const uint32_t*>(memory_ + parts_.codes) + octets.codes + k * (parts_.values.channel / 4);
  }
  __device__ const DecodingColumn& column(const Octets& octets, int k) const { return decoding()[octets.decoding + k]; }
  __device__ uint32_t sides(const Octets& octets, int k) const {
    return memory_[parts_.sides + octets.mask + k * parts_.mask_channel];
  }
  __device__ uint32_t passes(const Octets& octets, int k) const {
    return memory_[parts_.passes + octets.mask + k * parts_.mask_channel];
  }

 private:
  __device__ void fetch(int tile, const StageShape& shape, const uint8_t* codes, int part) const {
    StageFetch<Place>(rows_, shape, strip(), codes, memory_ + part).fetch(tile);
  }

  __device__ const StripChannels& strip() const {
    return *reinterpret_cast<const StripChannels*>(memory_ + parts_.strip);
  }
  __device__ bool own_exists() const { return lane_index() < strip().count; }
  __device__ bool has_codes() const { return backward_.values.header != nullptr; }
  __device__ int masks() const { return backward_.masks.layout.masks; }
  __device__ DecodingColumn* decoding() const { return reinterpret_cast<DecodingColumn*>(memory_); }
  __device__ GroupParameters* own_parameters(int group) const {
    return reinterpret_cast<GroupParameters*>(memory_ + parts_.parameters) + group * kWarp + lane_index();
  }

  uint8_t* memory_;
  const int64_t& rows_;
  const int64_t& channels_;
  const Backward<Element>& backward_;
  const StageParts& parts_;
};

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

/// A smooth activation at z, a copy: the last mask of those that jump says what is between the jumps.
template <ActivationFunction kFunction>
__device__ ActivatedNumber activate_copy(float z, const SavedOctet& octet, int j) {
  return actnn::activate_copy<kFunction>(z, octet.is_above(j), octet.passes_gradient(j));
}

/// The elements of a thread. `kBothSides`: whether copies below the kink are used; `kAffine`: whether those on plain
/// grids have weight and bias.
template <class Element, bool kVectors, bool kFromX, bool kBothSides, bool kAffine = false>
class ColumnCopies {
 public:
  using Place = ColumnPlace<Element, kVectors>;
  using Row = typename Place::Row;
  using Stage = SavedStage<Element, Place, kAffine>;

  /// What belongs to channels, in shared memory.
  struct MapTable {
    WarpTable<float2, Place> maps;  ///< from x
  };
  struct NoTable {};
  using Table = std::conditional_t<kFromX, MapTable, NoTable>;

  /// `is_linear(channel)`: see `SavedStage`.
  template <class IsLinear>
  __device__ ColumnCopies(const Backward<Element>& backward, const WarpColumns& columns, const StageParts& parts,
                          uint4* memory, Table& table, IsLinear&& is_linear)
      : backward_(backward),
        columns_(columns),
        table_(table),
        header_(kFromX ? PackedHeader{0, PackedHeader::kUndithered} : *backward.values.header),
        decoder_(backward.values.layout.bits, header_.dithered()),
        stage_(memory, columns, backward, parts, is_linear) {
    if constexpr (kFromX) {
      table.maps.load(columns, [&](int64_t channel) {
        const NormActChannel& map = backward.channels_of_x[channel];
        return make_float2(map.s_scale, map.s_shift);
      });
    }
  }

  /// The rows of so many gradients, 0 to 2, and behind them those of x where copies are computed from it.
  template <int kGradients>
  __device__ auto rows_ahead() const {
    const Element* matrices[3] = {backward_.grad, backward_.second_grad, nullptr};
    if constexpr (kFromX) {
      matrices[kGradients] = backward_.x;
    }
    return RowsAhead<Place, kGradients + (kFromX ? 1 : 0)>(stage_.rows(), matrices);
  }

  /// Calls `use()` for each octet of rows that this thread has, with `place` there; its `rows` have arrived, and so has
  /// what was saved. `kBackwards`: the last ones come first. `kInStep`: the warps of a block wait for each other, which
  /// pays where much is written: memory takes what belongs to neighbouring strips of the same rows as longer runs.
  template <bool kBackwards, bool kInStep, int kMatrices, class Use>
  __device__ void visit(Place& place, RowsAhead<Place, kMatrices>& rows, Use&& use) {
    const auto first_item = static_cast<int>(columns_.part());
    const auto parts = static_cast<int>(columns_.parts);
    const auto items = static_cast<int>(columns_.items);
    const int step = kBackwards ? -parts : parts;
    const auto exists = [&](int item) { return kBackwards ? item >= 0 : item < items; };
    Place next = place;
    const auto fetch = [&](int item, int pass) {
      next.move(columns_.tile(item), columns_.octet_row(pass));
      rows.fetch(next);
    };
    int item = kBackwards ? first_item + (items - 1 - first_item) / parts * parts : first_item;
    fetch(item, columns_.first_pass(item));
    __pipeline_commit();
#pragma unroll 1
    for (; exists(item); item += step) {
      stage_.fetch(columns_.tile(item));
      const int first = columns_.first_pass(item);
      const int last = first + columns_.passes() - 1;
#pragma unroll 1
      for (int pass = first; pass <= last; ++pass) {
        place = next;
        rows.step();
        if (pass != last) {
          fetch(item, pass + 1);
        } else if (exists(item + step)) {
          fetch(item + step, columns_.first_pass(item + step));
        }
        __pipeline_commit();
        if (pass == first) {
          may_be_nan_ = stage_.wait(header_.dithered());
        } else {
          __pipeline_wait_prior(1);
          __syncwarp();
        }
        if constexpr (kInStep) {
          __syncthreads();  // of those that have not returned
        }
        if constexpr (kFromX) {
          rows.take(kMatrices - 1, place, x_);
        }
        use();
      }
    }
  }

  /// Calls `of_octet(pair, i, octet)` for channel pair + i, i = 0 and 1, and then `of_pair(pair)`, for all pairs of
  /// channels of the octet of rows that `place` is at.
  template <class OfOctet, class OfPair>
  __device__ void for_each_pair(const Place& place, OfOctet&& of_octet, OfPair&& of_pair) const {
    if (may_be_nan_) {
      for_each<true>(place, of_octet, of_pair);
    } else {
      for_each<false>(place, of_octet, of_pair);
    }
  }

 private:
  struct ChannelNoise {
    uint32_t word[2];
  };

  /// `kMayBeNan`: copies may be NaN.
  template <bool kMayBeNan, class OfOctet, class OfPair>
  __device__ void for_each(const Place& place, OfOctet&& of_octet, OfPair&& of_pair) const {
    // Blocks of noise at once have their round keys in common, and each takes four registers.
    constexpr int kAtOnce = 2;
    const typename Stage::Octets octets = stage_.octets(place);
#pragma unroll
    for (int first = 0; first < Place::kChannels; first += 2 * kAtOnce) {
      PhiloxBlock noise[kAtOnce] = {};
      if constexpr (!kFromX) {
        header_.random().blocks(place.noise_block(first), noise);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int pair = first + 2 * n;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          of_octet(pair, i,
                   octet_of<kMayBeNan>(octets, place, pair + i, {{noise[n].word[2 * i], noise[n].word[2 * i + 1]}}));
        }
        of_pair(pair);
      }
    }
  }

  template <bool kMayBeNan>
  __device__ SavedOctet octet_of(const typename Stage::Octets& octets, const Place& place, int k,
                                 const ChannelNoise& noise) const {
    SavedOctet octet{};
    octet.sides = stage_.sides(octets, k);
    octet.passes = stage_.passes(octets, k);
    if constexpr (kFromX) {
      const float2 map = table_.maps.of(place, k);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const float scaled = map.x * x_[j][k];
        octet.copies[j] = scaled + map.y;
      }
    } else {
      const CodeHalves codes = decoder_.load(stage_.words(octets, k), octets.shift);
      const DecodingColumn column = stage_.column(octets, k);
      decoder_.template decode<kBothSides>(codes, noise.word, column, octet.sides, octet.copies);
      if constexpr (kMayBeNan) {
        octet.nans = decoder_.set_nans(codes, column, octet.copies);
      }
    }
    return octet;
  }

  const Backward<Element>& backward_;
  const WarpColumns& columns_;
  const Table& table_;
  PackedHeader header_;
  OctetDecoder decoder_;
  Stage stage_;
  bool may_be_nan_ = false;
  Row x_[kFromX ? kRows : 1];
};

/// The gradient of z in row j: smooth activations with a copy of z, the others by whether the gradient passes.
template <ActivationFunction kFunction, Below kBelow>
__device__ float gradient_of_z(float gradient, const SavedOctet& octet, int j, float slope, float z) {
  if constexpr (is_smooth(kFunction)) {
    return smooth_gradient(gradient, activate_copy<kFunction>(z, octet, j).derivative);
  } else {
    return leaky_relu_gradient(gradient, octet.passes_gradient(j), kBelow == Below::kFlat ? 0.0F : slope);
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
