#include <algorithm>
#include <cstring>

#include "actnn/core/sides.h"
#include "actnn/cpu/norm_act.h"
#include "src/cpu/channel_moments.h"

namespace actnn::cpu {
namespace {

using Layout = ColumnLayout<int64_t>;

/// The rows of one channel in a block: a group.
struct Column {
  int64_t block;
  int64_t channel;
  int64_t first_row;
  int64_t rows;

  int64_t index(const Layout& layout, int64_t row) const { return (first_row + row) * layout.channels + channel; }
};

/// Calls `body(column)` for the columns of pieces [first, last).
template <class Body>
void for_each_column(const Layout& layout, int64_t first, int64_t last, Body&& body) {
  for (int64_t number = first; number < last; ++number) {
    const ColumnPiece piece(layout, number);
    for (int64_t channel = piece.first_channel; channel < piece.first_channel + piece.channels; ++channel) {
      body(Column{piece.block, channel, piece.first_row, piece.rows});
    }
  }
}

/// The octets of a group in codes of `width` bits that begin at `codes`.
template <class Bytes>
Bytes* octet_of(Bytes* codes, const Layout& layout, const Column& column, int64_t octet, int width) {
  return codes + layout.group_offset(column.block, column.channel, width) + octet * width;
}

template <class Parameters>
Parameters load_parameters(const uint8_t* packed, const Layout& layout, const Column& column) {
  Parameters parameters;
  const int64_t group = column.block * layout.channels + column.channel;
  std::memcpy(&parameters, packed + kHeaderBytes + group * static_cast<int64_t>(sizeof parameters), sizeof parameters);
  return parameters;
}

template <class Parameters>
void store_parameters(const Parameters& parameters, uint8_t* packed, const Layout& layout, const Column& column) {
  const int64_t group = column.block * layout.channels + column.channel;
  std::memcpy(packed + kHeaderBytes + group * static_cast<int64_t>(sizeof parameters), &parameters, sizeof parameters);
}

/// Calls `body` with the activation as a template argument.
template <class Body>
auto with_smooth(ActivationFunction function, Body&& body) {
  using enum ActivationFunction;
  return function == kSiLU ? body.template operator()<kSiLU>() : body.template operator()<kHardswish>();
}

float activated(const FusedActivation& activation, float z, bool side) {
  switch (activation.function) {
    case ActivationFunction::kIdentity:
      return z;
    case ActivationFunction::kLeakyReLU:
      return leaky_relu(z, side, activation.slope);
    case ActivationFunction::kReLU6:
      return relu6(z);
    default:
      return with_smooth(activation.function, [&]<ActivationFunction function>() { return activate<function>(z).y; });
  }
}

/// An element in forward.
struct ForwardElement {
  float z;
  float s;
  bool side;
};

template <class Element>
ForwardElement forward_element(const NormActForward& forward, int64_t index, int64_t channel) {
  const NormActChannel& map = forward.channels[channel];
  const float input = to_float(static_cast<const Element*>(forward.x)[index]);
  const float scaled = map.z_scale * input;
  float z = scaled + map.z_shift;
  if (forward.residual) {
    z = z + to_float(static_cast<const Element*>(forward.residual)[index]);
  }
  const bool side = z > 0.0F;
  const float scaled_copy = map.s_scale * (map.linear != 0.0F ? input : z);
  const float s = scaled_copy + map.s_shift;
  return {z, forward.keeps(side) ? s : 0.0F, side};
}

/// Writes a group's codes: `code_of(row, noise)` is that of a row.
template <class CodeOf>
void store_codes(const NormActForward& forward, const Column& column, bool representable, CodeOf&& code_of) {
  const Layout& layout = forward.layout;
  const OctetSteps steps(layout.bits);
  for (int64_t octet = 0; octet < layout.block_octets(column.block); ++octet) {
    const OctetNoise noise =
        forward.random.octet(layout.noise_octet(column.first_row / kOctet + octet, column.channel));
    uint64_t codes = 0;
    for (int64_t row = octet * kOctet; representable && row < std::min((octet + 1) * kOctet, column.rows); ++row) {
      const int k = static_cast<int>(row % kOctet);
      codes |= static_cast<uint64_t>(code_of(row, forward.rounding == Rounding::kNearest ? kHalfStep : noise[k]))
               << (8 * k);
    }
    const uint64_t packed = pack_octet(codes, steps);
    std::memcpy(octet_of(forward.packed + layout.codes(), layout, column, octet, layout.bits), &packed,
                static_cast<size_t>(layout.bits));
  }
}

/// Writes a group of a mask: `is_set(row)`.
template <class IsSet>
void store_mask(const NormActForward& forward, const Column& column, int mask, IsSet&& is_set) {
  const Layout& layout = forward.layout;
  for (int64_t octet = 0; octet < layout.block_octets(column.block); ++octet) {
    unsigned bits = 0;
    for (int64_t row = octet * kOctet; row < std::min((octet + 1) * kOctet, column.rows); ++row) {
      bits |= static_cast<unsigned>(is_set(row)) << (row % kOctet);
    }
    *octet_of(forward.packed + layout.mask(mask), layout, column, octet, 1) = static_cast<uint8_t>(bits);
  }
}

template <class Element>
void forward_column(const NormActForward& forward, const Column& column) {
  const Layout& layout = forward.layout;
  const auto element = [&](int64_t row) {
    return forward_element<Element>(forward, column.index(layout, row), column.channel);
  };
  if (layout.bits != 0) {
    const bool split = layout.masks != 0 && forward.channels[column.channel].linear == 0.0F;
    GroupRange range;
    SideRange sides;
    for (int64_t row = 0; row < column.rows; ++row) {
      range.add(element(row).s);
      sides.add(element(row).s);
    }
    const uint32_t of_nan = highest_code(layout.bits);
    if (split) {
      const SideSteps steps = choose_sides(sides, layout.bits);
      store_parameters(steps, forward.packed, layout, column);
      const SideEncoder encoder(steps);
      store_codes(forward, column, steps.above != kNanBFloat16, [&](int64_t row, uint32_t noise) {
        const ForwardElement e = element(row);
        return is_finite(e.s) ? encoder.encode(e.s, e.side, noise, layout.bits) : of_nan;
      });
    } else {
      const GroupParameters parameters = choose_grid(range, layout.bits, forward.type);
      store_parameters(parameters, forward.packed, layout, column);
      const EncodingGrid grid = encoding_grid(parameters, forward.type);
      store_codes(forward, column, !is_nan(grid.minimum), [&](int64_t row, uint32_t noise) {
        const float s = element(row).s;
        return is_finite(s) ? encode(s, grid, noise, layout.bits) : of_nan;
      });
    }
  }
  if (layout.masks > 0) {
    store_mask(forward, column, 0, [&](int64_t row) { return element(row).side; });
  }
  if (layout.masks > 1) {
    const Jumps jumps = jumps_of(forward.activation.function);
    store_mask(forward, column, 1, [&](int64_t row) { return jumps.are_around(element(row).z); });
  }
  // Last: y may be where the residual was.
  for (int64_t row = 0; forward.y && row < column.rows; ++row) {
    const ForwardElement e = element(row);
    store_rounded(with_canonical_nan(activated(forward.activation, e.z, e.side)),
                  &static_cast<Element*>(forward.y)[column.index(layout, row)]);
  }
}

/// An element in backward.
struct SavedElement {
  float s;
  bool side;
  bool between;  ///< the jumps of the activation
};

PackedHeader header_of(const uint8_t* packed) {
  PackedHeader header{};
  std::memcpy(&header, packed, sizeof header);
  return header;
}

/// The copies of a packed tensor's group.
class SavedColumn {
 public:
  SavedColumn(const uint8_t* packed, const Layout& layout, const Column& column, ElementType type, bool linear)
      : packed_(packed), layout_(layout), column_(column), header_(header_of(packed)) {
    const bool split = layout.masks != 0 && !linear;
    const auto parameters = load_parameters<GroupParameters>(packed, layout, column);
    has_nan_code_ = (parameters.step & kHasNanCode) != 0;
    const SideDecoder sides({parameters.minimum, parameters.step}, header_.dithered());
    const DecodingGrid grid(parameters, type, header_.dithered());
    above_ = split ? sides.above : grid;
    below_ = split ? sides.below : grid;
  }

  float operator()(int64_t row, bool side) const {
    const int64_t octet = row / kOctet;
    const int k = static_cast<int>(row % kOctet);
    uint64_t packed = 0;
    std::memcpy(&packed, octet_of(packed_ + layout_.codes(), layout_, column_, octet, layout_.bits),
                static_cast<size_t>(layout_.bits));
    const auto code = static_cast<uint32_t>((unpack_octet(packed, OctetSteps(layout_.bits)) >> (8 * k)) & 0xFF);
    if (has_nan_code_ && code == highest_code(layout_.bits)) {
      return float_of(kNanFloat32);
    }
    const OctetNoise noise =
        header_.random().octet(layout_.noise_octet(column_.first_row / kOctet + octet, column_.channel));
    return (side ? above_ : below_).value(header_.dithered() ? dithered_code(code, noise[k]) : undithered_code(code));
  }

 private:
  const uint8_t* packed_;
  const Layout& layout_;
  const Column& column_;
  PackedHeader header_;
  DecodingGrid above_{0.0F, 0.0F, false};
  DecodingGrid below_{0.0F, 0.0F, false};
  bool has_nan_code_;
};

/// Calls `body(index, element)` for the rows of a group; `linear`: the channel's kind.
template <class Element, class Body>
void for_each_saved(const NormActBackward& backward, const Column& column, bool linear, Body&& body) {
  const Layout& layout = backward.layout;
  const Layout normalized = backward.normalized_layout();
  const auto mask = [&](int number, int64_t row) {
    return layout.masks > number &&
           ((*octet_of(backward.packed + layout.mask(number), layout, column, row / kOctet, 1) >> (row % kOctet)) &
            1) != 0;
  };
  const auto each = [&](auto&& copy_of) {
    for (int64_t row = 0; row < column.rows; ++row) {
      const bool side = layout.masks == 0 || mask(0, row);
      const int64_t index = column.index(layout, row);
      body(index, SavedElement{copy_of(row, index, side), side, mask(1, row)});
    }
  };
  if (backward.x) {
    const NormActChannel& map = backward.channels_of_x[column.channel];
    each([&](int64_t /*row*/, int64_t index, bool /*side*/) {
      const float scaled = map.s_scale * to_float(static_cast<const Element*>(backward.x)[index]);
      return scaled + map.s_shift;
    });
  } else if (backward.normalized) {
    const SavedColumn copies(backward.normalized, normalized, column, backward.type, /*linear=*/true);
    each([&](int64_t row, int64_t /*index*/, bool side) { return copies(row, side); });
  } else {
    const SavedColumn copies(backward.packed, layout, column, backward.type, linear);
    each([&](int64_t row, int64_t /*index*/, bool side) { return copies(row, side); });
  }
}

/// dz of an element, with z = a s + b.
template <class Element>
float gradient_of(const NormActBackward& backward, int64_t index, const SavedElement& saved, float a, float b) {
  float gradient = to_float(static_cast<const Element*>(backward.grad)[index]);
  if (backward.second_grad) {
    gradient = gradient + to_float(static_cast<const Element*>(backward.second_grad)[index]);
  }
  switch (backward.activation.function) {
    case ActivationFunction::kIdentity:
      return gradient;
    case ActivationFunction::kLeakyReLU:
      return leaky_relu_gradient(gradient, saved.side, backward.activation.slope);
    case ActivationFunction::kReLU6:
      return leaky_relu_gradient(gradient, saved.between, 0.0F);
    default:
      const float scaled = a * saved.s;
      return with_smooth(backward.activation.function, [&]<ActivationFunction function>() {
        return smooth_gradient(gradient, activate_copy<function>(scaled + b, saved.side, saved.between).derivative);
      });
  }
}

/// y of a copy of z.
float output_of(const FusedActivation& activation, float z, const SavedElement& saved) {
  if (is_smooth(activation.function)) {
    return with_smooth(activation.function, [&]<ActivationFunction function>() {
      return activate_copy<function>(z, saved.side, saved.between).y;
    });
  }
  return activation.function == ActivationFunction::kReLU6 ? relu6_of_copy(z, saved.side, saved.between)
                                                           : activated(activation, z, saved.side);
}

}  // namespace

namespace reference {

void part_moments(const void* x, ElementType type, int64_t rows, int64_t channels, int64_t part, double* mean,
                  double* squares) {
  const int64_t first = part * kPartRows;
  const int64_t last = std::min(first + kPartRows, rows);
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    const auto* elements = static_cast<const Element*>(x);
    std::fill_n(mean, channels, 0.0);
    std::fill_n(squares, channels, 0.0);
    for (int64_t row = first; row < last; ++row) {
      for (int64_t channel = 0; channel < channels; ++channel) {
        const double distance = double{to_float(elements[row * channels + channel])} -
                                moments_origin(to_float(elements[first * channels + channel]));
        mean[channel] += distance;
        squares[channel] += distance * distance;
      }
    }
    for (int64_t channel = 0; channel < channels; ++channel) {
      finish_moments(moments_origin(to_float(elements[first * channels + channel])), last - first, mean[channel],
                     squares[channel]);
    }
  });
}

void norm_act(const NormActForward& forward, int64_t first, int64_t last) {
  with_element_type(forward.type, [&]<class Element>(Element /*tag*/) {
    for_each_column(forward.layout, first, last,
                    [&](const Column& column) { forward_column<Element>(forward, column); });
  });
}

void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums) {
  const int64_t across = pieces_across(backward.layout);
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    for_each_column(backward.layout, first * across, last * across, [&](const Column& column) {
      const DecodeMap& map = channels[column.channel];
      for_each_saved<Element>(backward, column, map.linear != 0.0F, [&](int64_t index, const SavedElement& saved) {
        const float dz = gradient_of<Element>(backward, index, saved, map.a, map.b);
        sums[column.channel] += dz;
        copy_sums[column.channel] += static_cast<double>(dz) * saved.s;
      });
    });
  });
}

void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last) {
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    for_each_column(backward.layout, first, last, [&](const Column& column) {
      const NormActGradient& map = channels[column.channel];
      for_each_saved<Element>(backward, column, map.linear != 0.0F, [&](int64_t index, const SavedElement& saved) {
        const float dz = gradient_of<Element>(backward, index, saved, map.a, map.b);
        const float of_gradient = map.scale * dz;
        const float of_copy = map.of_copy * saved.s;
        const float sum = of_gradient + of_copy;
        store_rounded(with_canonical_nan(sum + map.shift), &static_cast<Element*>(grad_input)[index]);
        if (grad_sum) {
          store_rounded(with_canonical_nan(dz), &static_cast<Element*>(grad_sum)[index]);
        }
      });
    });
  });
}

void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last) {
  with_element_type(backward.type, [&]<class Element>(Element /*tag*/) {
    for_each_column(backward.layout, first, last, [&](const Column& column) {
      const DecodeMap& map = channels[column.channel];
      for_each_saved<Element>(backward, column, map.linear != 0.0F, [&](int64_t index, const SavedElement& saved) {
        const float scaled = map.a * saved.s;
        store_rounded(with_canonical_nan(output_of(backward.activation, scaled + map.b, saved)),
                      &static_cast<Element*>(y)[index]);
      });
    });
  });
}

}  // namespace reference
}  // namespace actnn::cpu
