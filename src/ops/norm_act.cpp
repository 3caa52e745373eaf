#include "actnn/ops/norm_act.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "actnn/cpu/norm_act.h"
#include "src/ops/activation_names.h"
#include "src/ops/copies_arguments.h"
#include "src/ops/dispatch.h"
#include "src/ops/norm_act_checks.h"
#include "src/ops/packed_header.h"
#include "src/ops/rounding_names.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using TwoTensors = std::tuple<at::Tensor, at::Tensor>;
using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using SumsSignature = CopiesSignature<at::Tensor, const at::Tensor&, const OptionalTensor&, const at::Tensor&>;
using SumsAndGradientsSignature =
    CopiesSignature<ThreeTensors, const at::Tensor&, const OptionalTensor&, const at::Tensor&, const OptionalTensor&,
                    const at::Tensor&, c10::SymInt>;
using InputGradientSignature = SumsSignature;

// --- CPU -------------------------------------------------------------------------------------------------------------

TwoTensors moments_cpu(const at::Tensor& input) {
  const ElementType type = check_channel_moments(input);
  const int64_t rows = input.size(0);
  const int64_t channels = input.size(1);
  const int64_t parts = ceil_div(rows, cpu::kPartRows);
  std::vector<double> means(parts * channels);
  std::vector<double> squares(parts * channels);
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t place = part * channels;
      cpu::part_moments(input.const_data_ptr(), type, rows, channels, part, means.data() + place,
                        squares.data() + place);
    }
  });
  at::Tensor mean = per_channel(input, channels);
  at::Tensor variance = per_channel(input, channels);
  cpu::join_moments(means.data(), squares.data(), rows, channels, mean.mutable_data_ptr<float>(),
                    variance.mutable_data_ptr<float>());
  return {mean, variance};
}

ThreeTensors channels_cpu(const at::Tensor& mean, const at::Tensor& variance, const OptionalTensor& weight,
                          const OptionalTensor& bias, double eps, bool has_kink) {
  check_norm_act_channels(mean, variance, weight, bias);
  const int64_t count = mean.size(0);
  at::Tensor channels = per_channel(mean, count, kNormActChannel);
  at::Tensor decode = per_channel(mean, count, kDecodeMap);
  at::Tensor rstd = per_channel(mean, count);
  for (int64_t c = 0; c < count; ++c) {
    const float w = weight ? weight->const_data_ptr<float>()[c] : 1.0F;
    const float b = bias ? bias->const_data_ptr<float>()[c] : 0.0F;
    const float deviation = std::sqrt(variance.const_data_ptr<float>()[c] + static_cast<float>(eps));
    rstd.mutable_data_ptr<float>()[c] = 1.0F / deviation;
    mutable_rows_as<NormActChannel>(channels)[c] =
        forward_channel(mean.const_data_ptr<float>()[c], 1.0F / deviation, w, b, has_kink);
    mutable_rows_as<DecodeMap>(decode)[c] = decode_map(w, b, has_kink);
  }
  return {channels, decode, rstd};
}

TwoTensors sum_channels_cpu(const OptionalTensor& channels, const at::Tensor& like) {
  check_sum_channels(channels, like);
  const int64_t count = channels_of(like);
  at::Tensor forward = per_channel(like, count, kNormActChannel);
  at::Tensor decode = per_channel(like, count, kDecodeMap);
  for (int64_t c = 0; c < count; ++c) {
    const auto* norm = channels ? &rows_as<NormActChannel>(*channels)[c] : nullptr;
    mutable_rows_as<NormActChannel>(forward)[c] =
        norm ? sum_channel(norm->z_scale, norm->z_shift) : sum_channel(1.0F, 0.0F);
    mutable_rows_as<DecodeMap>(decode)[c] = sum_decode_map();
  }
  return {forward, decode};
}

/// Calls `body(first, last)` for the pieces of a pass, in parallel.
template <class Body>
void for_pieces(const ColumnLayout<int64_t>& layout, Body&& body) {
  at::parallel_for(0, cpu::column_pieces(layout), parallel_grain(kDefaultGroupRows * cpu::kPieceChannels), body);
}

TwoTensors norm_act_cpu(const at::Tensor& input, const OptionalTensor& residual, const at::Tensor& channels,
                        c10::string_view activation, double slope, std::optional<int64_t> bits, bool keeps_below,
                        c10::string_view rounding, const OptionalTensor& rng_state) {
  const FusedActivation fused = fused_activation(kNormAct, activation, slope);
  const NormActPacking packing{bits, keeps_below, rounding_of(kNormAct, rounding)};
  const ElementType type = check_norm_act(input, residual, channels, fused, packing, rng_state);
  const auto layout = packed_layout(input.size(0), input.size(1), fused, bits);
  const PackedHeader header = layout ? take_header(packing.rounding, rng_state) : PackedHeader{};
  at::Tensor y = at::empty_like(input);
  at::Tensor packed = empty_packed(layout, header, input);
  const cpu::NormActForward forward{.x = input.const_data_ptr(),
                                    .residual = data_or_null(residual),
                                    .y = y.mutable_data_ptr(),
                                    .type = type,
                                    .layout = layout.value_or(layout_of(input.size(0), input.size(1), 0, 0)),
                                    .channels = rows_as<NormActChannel>(channels),
                                    .activation = fused,
                                    .keeps_below = keeps_below,
                                    .packed = layout ? packed.mutable_data_ptr<uint8_t>() : nullptr,
                                    .random = header.random(),
                                    .rounding = packing.rounding};
  for_pieces(forward.layout, [&](int64_t first, int64_t last) { cpu::norm_act(forward, first, last); });
  return {y, packed};
}

cpu::NormActBackward backward_of(const NormActCopies& copies, const at::Tensor& grad, const OptionalTensor& second_grad,
                                 ElementType type) {
  return {.packed = static_cast<const uint8_t*>(data_or_null(copies.packed)),
          .layout = layout_of(grad.size(0), grad.size(1), copies.bits, mask_count(copies.activation.function)),
          .grad = grad.const_data_ptr(),
          .second_grad = data_or_null(second_grad),
          .type = type,
          .activation = copies.activation,
          .x = data_or_null(copies.input),
          .channels_of_x = copies.channels ? rows_as<NormActChannel>(*copies.channels) : nullptr,
          .normalized = static_cast<const uint8_t*>(data_or_null(copies.normalized)),
          .normalized_bits = static_cast<int>(copies.normalized_bits)};
}

template <class... Arguments>
at::Tensor sums_cpu(const OptionalTensor& packed, const at::Tensor& grad, const OptionalTensor& second_grad,
                    const at::Tensor& decode, Arguments... arguments) {
  const NormActCopies copies = copies_of(kSums, packed, arguments...);
  const ElementType type = check_norm_act_sums(copies, grad, second_grad, decode);
  const cpu::NormActBackward backward = backward_of(copies, grad, second_grad, type);
  const int64_t channels = backward.layout.channels;
  const int64_t part_blocks = ceil_div(cpu::kPartRows, backward.layout.group_rows);
  const int64_t parts = ceil_div(backward.layout.blocks(), part_blocks);
  std::vector<double> sums(2 * parts * channels);
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      double* of_part = sums.data() + 2 * part * channels;
      cpu::norm_act_sums(backward, rows_as<DecodeMap>(decode), part * part_blocks,
                         std::min((part + 1) * part_blocks, backward.layout.blocks()), of_part, of_part + channels);
    }
  });
  std::vector<double> joint_sums(2 * channels);
  for (int64_t part = 0; part < parts; ++part) {
    std::transform(joint_sums.begin(), joint_sums.end(), sums.begin() + 2 * part * channels, joint_sums.begin(),
                   std::plus<>());
  }
  at::Tensor result = at::empty({2, channels}, decode.options());
  std::copy(joint_sums.begin(), joint_sums.end(), result.mutable_data_ptr<float>());
  return result;
}

ThreeTensors gradients_cpu(const at::Tensor& sums, const at::Tensor& decode, const OptionalTensor& weight,
                           const at::Tensor& rstd, int64_t count) {
  check_norm_act_gradients(sums, decode, weight, rstd);
  const int64_t channels = rstd.size(0);
  at::Tensor gradients = per_channel(sums, channels, kNormActGradient);
  at::Tensor grad_weight = per_channel(sums, channels);
  at::Tensor grad_bias = per_channel(sums, channels);
  const auto* sum = sums.const_data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    const DecodeMap& map = rows_as<DecodeMap>(decode)[c];
    const float w = weight ? weight->const_data_ptr<float>()[c] : 1.0F;
    const float share = count > 0 ? 1.0F / static_cast<float>(count) : 0.0F;
    mutable_rows_as<NormActGradient>(gradients)[c] =
        gradient_channel(map, w, rstd.const_data_ptr<float>()[c], sum[c] * share, sum[channels + c] * share);
    grad_weight.mutable_data_ptr<float>()[c] = weight_gradient(map, sum[c], sum[channels + c]);
    grad_bias.mutable_data_ptr<float>()[c] = sum[c];
  }
  return {gradients, grad_weight, grad_bias};
}

void input_gradient_out_cpu(const OptionalTensor& packed, const at::Tensor& grad, const OptionalTensor& second_grad,
                            const at::Tensor& gradients, c10::string_view activation, double slope, int64_t bits,
                            const OptionalTensor& input, const OptionalTensor& channels,
                            const OptionalTensor& normalized, int64_t normalized_bits, at::Tensor& grad_input,
                            const OptionalTensor& grad_sum) {
  const NormActCopies copies =
      copies_of(kInputGradient, packed, activation, slope, bits, input, channels, normalized, normalized_bits);
  const ElementType type = check_norm_act_input_gradient(copies, grad, second_grad, gradients, grad_input, grad_sum);
  const cpu::NormActBackward backward = backward_of(copies, grad, second_grad, type);
  for_pieces(backward.layout, [&](int64_t first, int64_t last) {
    cpu::norm_act_input_gradient(backward, rows_as<NormActGradient>(gradients), grad_input.mutable_data_ptr(),
                                 grad_sum ? grad_sum->mutable_data_ptr() : nullptr, first, last);
  });
}

at::Tensor output_cpu(const at::Tensor& packed, const at::Tensor& decode, int64_t rows, at::ScalarType dtype,
                      c10::string_view activation, double slope, int64_t bits) {
  const FusedActivation fused = fused_activation(kOutput, activation, slope);
  const ElementType type = check_norm_act_output(packed, decode, rows, dtype, fused, bits);
  at::Tensor y = at::empty({rows, decode.size(0)}, packed.options().dtype(dtype));
  const cpu::NormActBackward backward =
      backward_of({.packed = packed, .activation = fused, .bits = bits}, y, std::nullopt, type);
  for_pieces(backward.layout, [&](int64_t first, int64_t last) {
    cpu::norm_act_output(backward, rows_as<DecodeMap>(decode), y.mutable_data_ptr(), first, last);
  });
  return y;
}

// --- Meta ------------------------------------------------------------------------------------------------------------

TwoTensors moments_meta(const at::Tensor& input) {
  check_channel_moments(input);
  return {per_channel(input, channels_of(input)), per_channel(input, channels_of(input))};
}

ThreeTensors channels_meta(const at::Tensor& mean, const at::Tensor& variance, const OptionalTensor& weight,
                           const OptionalTensor& bias, double /*eps*/, bool /*has_kink*/) {
  check_norm_act_channels(mean, variance, weight, bias);
  const int64_t count = mean.size(0);
  return {per_channel(mean, count, kNormActChannel), per_channel(mean, count, kDecodeMap), per_channel(mean, count)};
}

TwoTensors sum_channels_meta(const OptionalTensor& channels, const at::Tensor& like) {
  check_sum_channels(channels, like);
  const int64_t count = channels_of(like);
  return {per_channel(like, count, kNormActChannel), per_channel(like, count, kDecodeMap)};
}

TwoTensors norm_act_meta(const at::Tensor& input, const OptionalTensor& residual, const at::Tensor& channels,
                         c10::string_view activation, double slope, std::optional<int64_t> bits, bool keeps_below,
                         c10::string_view rounding, const OptionalTensor& rng_state) {
  const FusedActivation fused = fused_activation(kNormAct, activation, slope);
  check_norm_act(input, residual, channels, fused, {bits, keeps_below, rounding_of(kNormAct, rounding)}, rng_state);
  const auto layout = packed_layout(input.sym_size(0), channels.size(0), fused, bits);
  return {at::empty_like(input), empty_bytes(layout ? layout->bytes() : c10::SymInt(0), input)};
}

template <class... Arguments>
at::Tensor sums_meta(const OptionalTensor& packed, const at::Tensor& grad, const OptionalTensor& second_grad,
                     const at::Tensor& decode, Arguments... arguments) {
  check_norm_act_sums(copies_of(kSums, packed, arguments...), grad, second_grad, decode);
  return at::empty({2, decode.size(0)}, decode.options());
}

void input_gradient_out_meta(const OptionalTensor& packed, const at::Tensor& grad, const OptionalTensor& second_grad,
                             const at::Tensor& gradients, c10::string_view activation, double slope, int64_t bits,
                             const OptionalTensor& input, const OptionalTensor& channels,
                             const OptionalTensor& normalized, int64_t normalized_bits, at::Tensor& grad_input,
                             const OptionalTensor& grad_sum) {
  check_norm_act_input_gradient(
      copies_of(kInputGradient, packed, activation, slope, bits, input, channels, normalized, normalized_bits), grad,
      second_grad, gradients, grad_input, grad_sum);
}

/// On every device: the gradient in a new tensor.
template <class... Arguments>
at::Tensor input_gradient(const OptionalTensor& packed, const at::Tensor& grad, const OptionalTensor& second_grad,
                          const at::Tensor& gradients, Arguments... arguments) {
  at::Tensor grad_input = at::empty_like(grad);
  norm_act_input_gradient_out(copies_of(kInputGradient, packed, arguments...), grad, second_grad, gradients, grad_input,
                              {});
  return grad_input;
}

// The dispatcher passes symbolic integers by value.
// NOLINTBEGIN(performance-unnecessary-value-param)
ThreeTensors gradients_meta(const at::Tensor& sums, const at::Tensor& decode, const OptionalTensor& weight,
                            const at::Tensor& rstd, c10::SymInt /*count*/) {
  check_norm_act_gradients(sums, decode, weight, rstd);
  const int64_t channels = rstd.size(0);
  return {per_channel(sums, channels, kNormActGradient), per_channel(sums, channels), per_channel(sums, channels)};
}

template <class... Arguments>
ThreeTensors sums_and_gradients(const OptionalTensor& packed, const at::Tensor& grad, const OptionalTensor& second_grad,
                                const at::Tensor& decode, const OptionalTensor& weight, const at::Tensor& rstd,
                                c10::SymInt count, Arguments... arguments) {
  const at::Tensor sums = norm_act_sums(copies_of(kSums, packed, arguments...), grad, second_grad, decode);
  return norm_act_gradients(sums, decode, weight, rstd, count);
}

at::Tensor output_meta(const at::Tensor& packed, const at::Tensor& decode, c10::SymInt rows, at::ScalarType dtype,
                       c10::string_view activation, double slope, int64_t bits) {
  check_norm_act_output(packed, decode, rows, dtype, fused_activation(kOutput, activation, slope), bits);
  return at::empty_symint({rows, decode.sym_size(0)}, packed.options().dtype(dtype));
}

// NOLINTEND(performance-unnecessary-value-param)

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def("channel_moments(Tensor input) -> (Tensor mean, Tensor variance)", {at::Tag::pt2_compliant_tag});
  m.def(
      "norm_act_channels(Tensor mean, Tensor variance, Tensor? weight, Tensor? bias, float eps, bool has_kink) -> "
      "(Tensor channels, Tensor decode, Tensor rstd)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "norm_act(Tensor input, Tensor? residual, Tensor channels, str activation, float slope=0.0, int? bits=4, "
      "bool keeps_below=True, str rounding='dithered', Tensor(a!)? rng_state=None) -> (Tensor y, Tensor packed)",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def(("norm_act_sums(Tensor? packed, Tensor grad, Tensor? second_grad, Tensor decode, " + kCopiesSchema +
         ") -> Tensor")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
  m.def("sum_channels(Tensor? channels, Tensor like) -> (Tensor channels, Tensor decode)",
        {at::Tag::pt2_compliant_tag});
  m.def(("norm_act_sums_and_gradients(Tensor? packed, Tensor grad, Tensor? second_grad, Tensor decode, Tensor? weight, "
         "Tensor rstd, SymInt count, " +
         kCopiesSchema + ") -> (Tensor gradients, Tensor grad_weight, Tensor grad_bias)")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
  m.def(
      "norm_act_gradients(Tensor sums, Tensor decode, Tensor? weight, Tensor rstd, SymInt count) -> "
      "(Tensor gradients, Tensor grad_weight, Tensor grad_bias)",
      {at::Tag::pt2_compliant_tag});
  m.def(("norm_act_input_gradient(Tensor? packed, Tensor grad, Tensor? second_grad, Tensor gradients, " +
         kCopiesSchema + ") -> Tensor")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
  m.def(
      "norm_act_input_gradient_out(Tensor? packed, Tensor grad, Tensor? second_grad, Tensor gradients, "
      "str activation, float slope, int bits, Tensor? input, Tensor? channels, Tensor? normalized, "
      "int normalized_bits, Tensor(a!) grad_input, Tensor(b!)? grad_sum) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "norm_act_output(Tensor packed, Tensor decode, SymInt rows, ScalarType dtype, str activation, float slope, "
      "int bits) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("channel_moments", moments_cpu);
  m.impl("norm_act_channels", channels_cpu);
  m.impl("sum_channels", sum_channels_cpu);
  m.impl("norm_act", norm_act_cpu);
  m.impl("norm_act_sums", static_cast<SumsSignature*>(sums_cpu));
  m.impl("norm_act_gradients", gradients_cpu);
  m.impl("norm_act_input_gradient_out", input_gradient_out_cpu);
  m.impl("norm_act_output", output_cpu);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("channel_moments", moments_meta);
  m.impl("norm_act_channels", channels_meta);
  m.impl("sum_channels", sum_channels_meta);
  m.impl("norm_act", norm_act_meta);
  m.impl("norm_act_sums", static_cast<SumsSignature*>(sums_meta));
  m.impl("norm_act_gradients", gradients_meta);
  m.impl("norm_act_input_gradient_out", input_gradient_out_meta);
  m.impl("norm_act_output", output_meta);
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("norm_act_input_gradient", static_cast<InputGradientSignature*>(input_gradient));
  m.impl("norm_act_sums_and_gradients", static_cast<SumsAndGradientsSignature*>(sums_and_gradients));
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  for (const char* op : {"channel_moments", "norm_act_channels", "norm_act", "norm_act_sums", "norm_act_gradients",
                         "norm_act_input_gradient", "norm_act_input_gradient_out", "norm_act_output", "sum_channels",
                         "norm_act_sums_and_gradients"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}

TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  for (const char* op : {"norm_act", "norm_act_input_gradient_out"}) {
    m.impl(op, torch::autograd::autogradNotImplementedInplaceOrViewFallback());
  }
}

TwoTensors channel_moments(const at::Tensor& input) {
  static const auto kOp = find_op<TwoTensors(const at::Tensor&)>("actnn::channel_moments");
  return kOp.call(input);
}

ThreeTensors norm_act_channels(const at::Tensor& mean, const at::Tensor& variance, const OptionalTensor& weight,
                               const OptionalTensor& bias, double eps, bool has_kink) {
  static const auto kOp = find_op<ThreeTensors(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                               const OptionalTensor&, double, bool)>("actnn::norm_act_channels");
  return kOp.call(mean, variance, weight, bias, eps, has_kink);
}

TwoTensors norm_act(const at::Tensor& input, const OptionalTensor& residual, const at::Tensor& channels,
                    const FusedActivation& activation, const NormActPacking& packing, const OptionalTensor& rng_state) {
  static const auto kOp =
      find_op<TwoTensors(const at::Tensor&, const OptionalTensor&, const at::Tensor&, c10::string_view, double,
                         std::optional<int64_t>, bool, c10::string_view, const OptionalTensor&)>("actnn::norm_act");
  return kOp.call(input, residual, channels, name_of(activation.function), activation.slope, packing.bits,
                  packing.keeps_below, name_of(packing.rounding), rng_state);
}

at::Tensor norm_act_sums(const NormActCopies& copies, const at::Tensor& grad, const OptionalTensor& second_grad,
                         const at::Tensor& decode) {
  static const auto kOp = find_op<SumsSignature>(kSums);
  return call_with_copies(kOp, copies, grad, second_grad, decode);
}

ThreeTensors norm_act_sums_and_gradients(const NormActCopies& copies, const at::Tensor& grad,
                                         const OptionalTensor& second_grad, const at::Tensor& decode,
                                         const OptionalTensor& weight, const at::Tensor& rstd,
                                         const c10::SymInt& count) {
  static const auto kOp = find_op<SumsAndGradientsSignature>("actnn::norm_act_sums_and_gradients");
  return call_with_copies(kOp, copies, grad, second_grad, decode, weight, rstd, count);
}

TwoTensors sum_channels(const OptionalTensor& channels, const at::Tensor& like) {
  static const auto kOp = find_op<TwoTensors(const OptionalTensor&, const at::Tensor&)>("actnn::sum_channels");
  return kOp.call(channels, like);
}

ThreeTensors norm_act_gradients(const at::Tensor& sums, const at::Tensor& decode, const OptionalTensor& weight,
                                const at::Tensor& rstd, const c10::SymInt& count) {
  static const auto kOp = find_op<ThreeTensors(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                               const at::Tensor&, c10::SymInt)>("actnn::norm_act_gradients");
  return kOp.call(sums, decode, weight, rstd, count);
}

at::Tensor norm_act_input_gradient(const NormActCopies& copies, const at::Tensor& grad,
                                   const OptionalTensor& second_grad, const at::Tensor& gradients) {
  static const auto kOp = find_op<InputGradientSignature>(kInputGradient);
  return call_with_copies(kOp, copies, grad, second_grad, gradients);
}

void norm_act_input_gradient_out(const NormActCopies& copies, const at::Tensor& grad, const OptionalTensor& second_grad,
                                 const at::Tensor& gradients, at::Tensor& grad_input, const OptionalTensor& grad_sum) {
  static const auto kOp =
      find_op<void(const OptionalTensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&, c10::string_view,
                   double, int64_t, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t,
                   at::Tensor&, const OptionalTensor&)>("actnn::norm_act_input_gradient_out");
  kOp.call(copies.packed, grad, second_grad, gradients, name_of(copies.activation.function), copies.activation.slope,
           copies.bits, copies.input, copies.channels, copies.normalized, copies.normalized_bits, grad_input, grad_sum);
}

at::Tensor norm_act_output(const at::Tensor& packed, const at::Tensor& decode, const c10::SymInt& rows,
                           at::ScalarType dtype, const FusedActivation& activation, int64_t bits) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt, at::ScalarType,
                                             c10::string_view, double, int64_t)>("actnn::norm_act_output");
  return kOp.call(packed, decode, rows, dtype, name_of(activation.function), activation.slope, bits);
}

}  // namespace actnn
