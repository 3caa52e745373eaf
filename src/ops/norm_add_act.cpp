#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>

#include "actnn/cpu/norm_act.h"
#include "actnn/cpu/normalized_copies.h"
#include "actnn/ops/norm_act.h"
#include "src/ops/activation_names.h"
#include "src/ops/dispatch.h"
#include "src/ops/norm_act_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using Layout = SplitLayout<int64_t>;
using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// Groups whose input stays in a processor's cache from one packing to the next.
constexpr int64_t kGroupsAtOnce = 64;

/// Two packings of a group of rows, one after the other: of the sum, and of the norm by itself, which loses its sides.
ThreeTensors norm_add_act_cpu(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                              const at::Tensor& norm_channels, double slope, int64_t bits, int64_t normalized_bits,
                              bool keeps_below, bool stochastic, const OptionalTensor& rng_state) {
  const ElementType type =
      check_norm_add_act(input, residual, channels, norm_channels, bits, normalized_bits, rng_state);
  const Layout layout = split_layout(input);
  const int planes = static_cast<int>(normalized_bits);
  at::Tensor y = at::empty_like(input);
  at::Tensor packed = empty_packed(layout, static_cast<int>(bits), input);
  at::Tensor with_sides = empty_packed(layout, split_bits(planes), input);
  at::Tensor normalized = empty_packed(layout, planes, input);
  const cpu::NormActForward sum{.x = input.const_data_ptr(),
                                .residual = residual.const_data_ptr(),
                                .y = y.mutable_data_ptr(),
                                .type = type,
                                .layout = layout,
                                .channels = rows_as<NormActChannel>(channels),
                                .slope = static_cast<float>(slope),
                                .bits = static_cast<int>(bits),
                                .keeps_below = keeps_below,
                                .packed = packed.mutable_data_ptr<uint8_t>(),
                                .random = bits == 0 ? RandomState{} : take_random_state(rng_state),
                                .stochastic = stochastic};
  cpu::NormActForward norm = sum;
  norm.residual = nullptr;
  norm.y = nullptr;
  norm.channels = rows_as<NormActChannel>(norm_channels);
  norm.slope = 1.0F;
  norm.bits = split_bits(planes);
  norm.keeps_below = true;
  norm.packed = with_sides.mutable_data_ptr<uint8_t>();
  norm.random = take_random_state(rng_state);
  at::parallel_for(
      0, layout.groups(), parallel_grain(kSplitLanes * kLaneRows * kOctet), [&](int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end; first += kGroupsAtOnce) {
          const int64_t last = std::min(end, first + kGroupsAtOnce);
          cpu::norm_act(sum, first, last);
          cpu::norm_act(norm, first, last);
          cpu::drop_sides(norm.packed, layout, planes, normalized.mutable_data_ptr<uint8_t>(), first, last);
        }
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
  TORCH_CHECK_VALUE(packing.derivative.function == ActivationFunction::kLeakyReLU,
                    "actnn::norm_add_act: the activation must be ReLU, leaky ReLU or none, got ",
                    name_of(packing.derivative.function));
  static const auto kOp =
      find_op<ThreeTensors(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double, int64_t,
                           int64_t, bool, bool, const OptionalTensor&)>("actnn::norm_add_act");
  return kOp.call(input, residual, channels, norm_channels, slope, packing.bits, normalized_bits, packing.keeps_below,
                  packing.stochastic, rng_state);
}

}  // namespace actnn
