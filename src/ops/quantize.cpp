#include "actnn/ops/quantize.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>

#include "actnn/core/layout.h"
#include "actnn/cpu/quantize.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/packed_header.h"
#include "src/ops/quantize_checks.h"
#include "src/ops/rounding_names.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

constexpr const char* kQuantize = "actnn::quantize";
constexpr const char* kDequantize = "actnn::dequantize";

}  // namespace

QuantizedAs check_quantize(const at::Tensor& input, int64_t bits, int64_t group_size, c10::string_view rounding,
                           const std::optional<at::Tensor>& rng_state) {
  const ElementType type = check_floating(kQuantize, "input", input);
  check_bits(kQuantize, bits);
  check_group_size(kQuantize, group_size);
  check_rng_state(kQuantize, rng_state, input.device());
  return {type, rounding_of(kQuantize, rounding)};
}

ElementType check_dequantize(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                             at::ScalarType dtype, int64_t bits, int64_t group_size) {
  check_bits(kDequantize, bits);
  check_group_size(kDequantize, group_size);
  check_dense(kDequantize, size, stride);
  check_packed(kDequantize, "packed", packed, packed_bytes(element_count(size), static_cast<int>(bits), group_size));
  return check_element_type(kDequantize, dtype);
}

namespace {

at::Tensor quantize_cpu(const at::Tensor& input, int64_t bits, int64_t group_size, c10::string_view rounding,
                        const std::optional<at::Tensor>& rng_state) {
  const auto [type, how] = check_quantize(input, bits, group_size, rounding, rng_state);
  const at::Tensor dense = storage_order(input);
  const int64_t count = dense.numel();
  const int64_t groups = group_count(count, group_size);
  const at::Tensor packed = empty_bytes(packed_bytes(count, static_cast<int>(bits), group_size), input);
  auto* bytes = packed.mutable_data_ptr<uint8_t>();
  const PackedHeader header = take_header(how, rng_state);
  write_header(header, bytes);
  uint8_t* const parameters = bytes + kHeaderBytes;
  std::fill(parameters + groups * static_cast<int64_t>(sizeof(GroupParameters)), bytes + codes_offset(groups),
            uint8_t{0});
  const cpu::QuantizeSegment segment{.elements = dense.const_data_ptr(),
                                     .type = type,
                                     .count = count,
                                     .group_size = group_size,
                                     .bits = static_cast<int>(bits),
                                     .parameters = parameters,
                                     .codes = bytes + codes_offset(groups),
                                     .random = header.random(),
                                     .first_octet = 0,
                                     .rounding = how};
  at::parallel_for(0, groups, parallel_grain(group_size),
                   [&](int64_t first, int64_t last) { cpu::quantize_groups(segment, first, last); });
  return packed;
}

at::Tensor quantize_meta(const at::Tensor& input, int64_t bits, int64_t group_size, c10::string_view rounding,
                         const std::optional<at::Tensor>& rng_state) {
  check_quantize(input, bits, group_size, rounding, rng_state);
  return empty_bytes(packed_bytes(input.sym_numel(), static_cast<int>(bits), group_size), input);
}

at::Tensor dequantize_cpu(const at::Tensor& packed, c10::IntArrayRef size, c10::IntArrayRef stride,
                          at::ScalarType dtype, int64_t bits, int64_t group_size) {
  const ElementType type = check_dequantize(packed, c10::fromIntArrayRefSlow(size), c10::fromIntArrayRefSlow(stride),
                                            dtype, bits, group_size);
  at::Tensor output = at::empty_strided(size, stride, packed.options().dtype(dtype));
  const int64_t groups = group_count(output.numel(), group_size);
  const auto* bytes = packed.const_data_ptr<uint8_t>();
  const cpu::DequantizeSegment segment{.header = read_header(bytes),
                                       .parameters = bytes + kHeaderBytes,
                                       .codes = bytes + codes_offset(groups),
                                       .count = output.numel(),
                                       .group_size = group_size,
                                       .bits = static_cast<int>(bits),
                                       .type = type,
                                       .first_octet = 0,
                                       .elements = output.mutable_data_ptr()};
  at::parallel_for(0, groups, parallel_grain(group_size),
                   [&](int64_t first, int64_t last) { cpu::dequantize_groups(segment, first, last); });
  return output;
}

at::Tensor dequantize_meta(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                           at::ScalarType dtype, int64_t bits, int64_t group_size) {
  check_dequantize(packed, size, stride, dtype, bits, group_size);
  return at::empty_strided_symint(size, stride, packed.options().dtype(dtype));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def("format_version() -> int", [] { return int64_t{kFormatVersion}; });
  m.def(
      "quantize(Tensor input, int bits, int group_size, str rounding='dithered', Tensor(a!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def(
      "dequantize(Tensor packed, SymInt[] size, SymInt[] stride, ScalarType dtype, int bits, int group_size) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("quantize", quantize_cpu);
  m.impl("dequantize", dequantize_cpu);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("quantize", quantize_meta);
  m.impl("dequantize", dequantize_meta);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("quantize", torch::autograd::autogradNotImplementedFallback());
  m.impl("dequantize", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  m.impl("quantize", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

at::Tensor quantize(const at::Tensor& input, const Quantization& quantization,
                    const std::optional<at::Tensor>& rng_state) {
  static const auto kOp =
      find_op<at::Tensor(const at::Tensor&, int64_t, int64_t, c10::string_view, const std::optional<at::Tensor>&)>(
          kQuantize);
  return kOp.call(input, quantization.bits, quantization.group_size, name_of(quantization.rounding), rng_state);
}

at::Tensor dequantize(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      at::ScalarType dtype, const Quantization& quantization) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                             at::ScalarType, int64_t, int64_t)>(kDequantize);
  return kOp.call(packed, size, stride, dtype, quantization.bits, quantization.group_size);
}

}  // namespace actnn
