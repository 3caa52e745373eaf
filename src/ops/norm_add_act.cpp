#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>

#include "actnn/cpu/normalized_copies.h"
#include "actnn/ops/norm_act.h"
#include "src/ops/norm_act_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using Layout = SplitLayout<int64_t>;
using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// A new packed tensor, with zeros between steps and words.
at::Tensor empty_packed(const Layout& layout, int bits, const at::Tensor& like) {
  at::Tensor packed = empty_bytes(layout.bytes(bits), like);
  auto* bytes = packed.mutable_data_ptr<uint8_t>();
  std::fill(bytes + layout.groups() * static_cast<int64_t>(sizeof(SplitSteps)), bytes + codes_offset(layout.groups()),
            uint8_t{0});
  return packed;
}

/// The norm by itself, without its sides.
ThreeTensors norm_add_act_cpu(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                              const at::Tensor& norm_channels, double slope, int64_t bits, int64_t normalized_bits,
                              bool keeps_below, bool stochastic, const OptionalTensor& rng_state) {
  check_norm_add_act(input, residual, channels, norm_channels, bits, normalized_bits, rng_state);
  const Layout layout = split_layout(input);
  const int planes = static_cast<int>(normalized_bits);
  auto [y, packed] = norm_act(input, residual, channels, slope, {bits, keeps_below, stochastic}, rng_state);
  const at::Tensor with_sides = std::get<1>(
      norm_act(input, std::nullopt, norm_channels, /*slope=*/1.0, {split_bits(planes), true, stochastic}, rng_state));
  at::Tensor normalized = empty_packed(layout, planes, input);
  at::parallel_for(0, layout.groups(), parallel_grain(kSplitLanes * kLaneRows * kOctet),
                   [&](int64_t first, int64_t last) {
                     cpu::drop_sides(with_sides.const_data_ptr<uint8_t>(), layout, planes,
                                     normalized.mutable_data_ptr<uint8_t>(), first, last);
                   });
  return {y, packed, normalized};
}

ThreeTensors norm_add_act_meta(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                               const at::Tensor& norm_channels, double /*slope*/, int64_t bits, int64_t normalized_bits,
                               bool /*keeps_below*/, bool /*stochastic*/, const OptionalTensor& rng_state) {
  check_norm_add_act(input, residual, channels, norm_channels, bits, normalized_bits, rng_state);
  const SplitLayout<c10::SymInt> layout{input.sym_size(0), channels.size(0)};
  return {at::empty_like(input), empty_bytes(bits == 0 ? 0 : layout.bytes(static_cast<int>(bits)), input),
          empty_bytes(layout.bytes(static_cast<int>(normalized_bits)), input)};
}

}  // namespace

NormActCopies with_sides(const NormActCopies& copies, const Layout& layout) {
  if (!copies.normalized) {
    return copies;
  }
  const int planes = static_cast<int>(copies.normalized_bits);
  at::Tensor packed = empty_packed(layout, split_bits(planes), *copies.normalized);
  at::parallel_for(
      0, layout.groups(), parallel_grain(kSplitLanes * kLaneRows * kOctet), [&](int64_t first, int64_t last) {
        cpu::add_sides(copies.normalized->const_data_ptr<uint8_t>(),
                       static_cast<const uint8_t*>(data_or_null(copies.packed)), static_cast<int>(copies.bits), layout,
                       planes, packed.mutable_data_ptr<uint8_t>(), first, last);
      });
  return {.packed = packed, .slope = copies.slope, .bits = split_bits(planes)};
}

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "norm_add_act(Tensor input, Tensor residual, Tensor channels, Tensor norm_channels, float slope, int bits=4, "
      "int normalized_bits=2, bool keeps_below=True, bool stochastic=True, Tensor(a!)? rng_state=None) -> "
      "(Tensor y, Tensor packed, Tensor normalized)",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) { m.impl("norm_add_act", norm_add_act_cpu); }
TORCH_LIBRARY_IMPL(actnn, Meta, m) { m.impl("norm_add_act", norm_add_act_meta); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("norm_add_act", torch::autograd::autogradNotImplementedFallback()); }
TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  m.impl("norm_add_act", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

ThreeTensors norm_add_act(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                          const at::Tensor& norm_channels, double slope, const SplitPacking& packing,
                          int64_t normalized_bits, const OptionalTensor& rng_state) {
  static const auto kOp =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("actnn::norm_add_act", "")
          .typed<ThreeTensors(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double,
                              int64_t, int64_t, bool, bool, const OptionalTensor&)>();
  return kOp.call(input, residual, channels, norm_channels, slope, packing.bits, normalized_bits, packing.keeps_below,
                  packing.stochastic, rng_state);
}

}  // namespace actnn
