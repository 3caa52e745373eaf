#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>

#include "actnn/cpu/norm_act.h"
#include "actnn/ops/norm_act.h"
#include "src/ops/activation_names.h"
#include "src/ops/dispatch.h"
#include "src/ops/norm_act_checks.h"
#include "src/ops/packed_header.h"
#include "src/ops/rounding_names.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// Pieces whose input stays in a processor's cache from one packing to the next.
constexpr int64_t kPiecesAtOnce = 4;

/// Two packings of a piece, one after the other: of the sum, and of the norm by itself.
ThreeTensors norm_add_act_cpu(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                              const at::Tensor& norm_channels, c10::string_view activation, double slope,
                              std::optional<int64_t> bits, int64_t normalized_bits, bool keeps_below,
                              c10::string_view rounding, const OptionalTensor& rng_state) {
  const FusedActivation fused = fused_activation(kNormAddAct, activation, slope);
  const NormActPacking packing{bits, keeps_below, rounding_of(kNormAddAct, rounding)};
  const ElementType type =
      check_norm_add_act(input, residual, channels, norm_channels, fused, packing, normalized_bits, rng_state);
  const auto layout = packed_layout(input.size(0), input.size(1), fused, bits);
  const auto norm_layout = layout_of(input.size(0), input.size(1), normalized_bits, 0);
  const PackedHeader header = layout ? take_header(packing.rounding, rng_state) : PackedHeader{};
  const PackedHeader norm_header = take_header(packing.rounding, rng_state);
  at::Tensor y = at::empty_like(input);
  at::Tensor packed = empty_packed(layout, header, input);
  at::Tensor normalized = empty_packed(norm_layout, norm_header, input);
  const cpu::NormActForward sum{.x = input.const_data_ptr(),
                                .residual = residual.const_data_ptr(),
                                .y = y.mutable_data_ptr(),
                                .type = type,
                                .layout = layout.value_or(layout_of(input.size(0), input.size(1), 0, 0)),
                                .channels = rows_as<NormActChannel>(channels),
                                .activation = fused,
                                .keeps_below = keeps_below,
                                .packed = layout ? packed.mutable_data_ptr<uint8_t>() : nullptr,
                                .random = header.random(),
                                .rounding = packing.rounding};
  const cpu::NormActForward norm{.x = input.const_data_ptr(),
                                 .residual = nullptr,
                                 .y = nullptr,
                                 .type = type,
                                 .layout = norm_layout,
                                 .channels = rows_as<NormActChannel>(norm_channels),
                                 .activation = {},
                                 .keeps_below = true,
                                 .packed = normalized.mutable_data_ptr<uint8_t>(),
                                 .random = norm_header.random(),
                                 .rounding = packing.rounding};
  at::parallel_for(0, cpu::column_pieces(norm_layout), kPiecesAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kPiecesAtOnce) {
      const int64_t last = std::min(end, first + kPiecesAtOnce);
      cpu::norm_act(sum, first, last);
      cpu::norm_act(norm, first, last);
    }
  });
  return {y, packed, normalized};
}

ThreeTensors norm_add_act_meta(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                               const at::Tensor& norm_channels, c10::string_view activation, double slope,
                               std::optional<int64_t> bits, int64_t normalized_bits, bool keeps_below,
                               c10::string_view rounding, const OptionalTensor& rng_state) {
  const FusedActivation fused = fused_activation(kNormAddAct, activation, slope);
  const NormActPacking packing{bits, keeps_below, rounding_of(kNormAddAct, rounding)};
  check_norm_add_act(input, residual, channels, norm_channels, fused, packing, normalized_bits, rng_state);
  const auto layout = packed_layout(input.sym_size(0), channels.size(0), fused, bits);
  return {at::empty_like(input), empty_bytes(layout ? layout->bytes() : c10::SymInt(0), input),
          empty_bytes(layout_of(input.sym_size(0), channels.size(0), normalized_bits, 0).bytes(), input)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "norm_add_act(Tensor input, Tensor residual, Tensor channels, Tensor norm_channels, str activation, "
      "float slope=0.0, int? bits=4, int normalized_bits=3, bool keeps_below=True, str rounding='dithered', "
      "Tensor(a!)? rng_state=None) -> (Tensor y, Tensor packed, Tensor normalized)",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) { m.impl("norm_add_act", norm_add_act_cpu); }
TORCH_LIBRARY_IMPL(actnn, Meta, m) { m.impl("norm_add_act", norm_add_act_meta); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("norm_add_act", torch::autograd::autogradNotImplementedFallback()); }
TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  m.impl("norm_add_act", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

ThreeTensors norm_add_act(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                          const at::Tensor& norm_channels, const FusedActivation& activation,
                          const NormActPacking& packing, int64_t normalized_bits, const OptionalTensor& rng_state) {
  static const auto kOp =
      find_op<ThreeTensors(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::string_view,
                           double, std::optional<int64_t>, int64_t, bool, c10::string_view, const OptionalTensor&)>(
          "actnn::norm_add_act");
  return kOp.call(input, residual, channels, norm_channels, name_of(activation.function), activation.slope,
                  packing.bits, normalized_bits, packing.keeps_below, name_of(packing.rounding), rng_state);
}

}  // namespace actnn
