#include <ATen/Parallel.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "actnn/core/layout.h"
#include "actnn/cpu/quantize.h"
#include "actnn/ops/quantize.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/packed_header.h"
#include "src/ops/quantize_per_sample_checks.h"
#include "src/ops/rounding_names.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

constexpr const char* kQuantizePerSample = "actnn::quantize_per_sample";
constexpr const char* kDequantizePerSample = "actnn::dequantize_per_sample";

void check_bits_tensor(const char* op, const at::Tensor& bits, const c10::SymInt& samples, c10::Device device) {
  TORCH_CHECK_VALUE(bits.defined() && bits.scalar_type() == at::kByte && bits.dim() == 1 && bits.is_contiguous(), op,
                    ": bits must be a contiguous 1-D uint8 tensor with a value in 1..8 per sample, got ",
                    bits.defined() ? bits.toString() : "none");
  TORCH_CHECK_VALUE(bits.sym_numel() == samples, op, ": bits must have one entry per sample (", samples, "), got ",
                    bits.sym_numel());
  TORCH_CHECK_VALUE(bits.device() == device, op, ": bits must be on the input's device ", device, ", got ",
                    bits.device());
}

}  // namespace

QuantizedAs check_quantize_per_sample(const at::Tensor& input, const at::Tensor& bits, const c10::SymInt& code_bytes,
                                      int64_t group_size, c10::string_view rounding,
                                      const std::optional<at::Tensor>& rng_state) {
  const ElementType type = check_floating(kQuantizePerSample, "input", input);
  TORCH_CHECK_VALUE(input.dim() >= 1, kQuantizePerSample, ": input must have a sample dimension, got a 0-D tensor");
  check_group_size(kQuantizePerSample, group_size);
  check_bits_tensor(kQuantizePerSample, bits, input.sym_size(0), input.device());
  check_rng_state(kQuantizePerSample, rng_state, input.device());
  TORCH_CHECK_VALUE(code_bytes >= 0, kQuantizePerSample, ": code_bytes must not be negative, got ", code_bytes);
  return {type, rounding_of(kQuantizePerSample, rounding)};
}

ElementType check_dequantize_per_sample(const at::Tensor& packed, const at::Tensor& bits, c10::SymIntArrayRef size,
                                        c10::SymIntArrayRef stride, at::ScalarType dtype, int64_t group_size) {
  check_group_size(kDequantizePerSample, group_size);
  TORCH_CHECK_VALUE(!size.empty(), kDequantizePerSample, ": size must have a sample dimension, got []");
  check_dense(kDequantizePerSample, size, stride);
  const c10::SymInt count = element_count(size);
  TORCH_CHECK_VALUE(count == 0 || size[0] == 1 || stride[0] * size[0] == count, kDequantizePerSample,
                    ": stride must have the sample dimension outermost, got ", stride, " for size ", size);
  check_bits_tensor(kDequantizePerSample, bits, size[0], packed.device());
  const c10::SymInt codes = codes_offset(all_groups(count, size[0], group_size));
  TORCH_CHECK_VALUE(
      packed.scalar_type() == at::kByte && packed.dim() == 1 && packed.is_contiguous() && packed.sym_numel() >= codes,
      kDequantizePerSample, ": packed must be a contiguous 1-D uint8 tensor of at least ", codes, " bytes, got ",
      packed.toString(), " with ", packed.sym_numel(), " elements");
  return check_element_type(kDequantizePerSample, dtype);
}

namespace {

/// Where each sample's codes begin; the last entry is their end.
std::vector<int64_t> code_offsets(const char* op, const at::Tensor& bits, int64_t elements) {
  const auto* values = bits.const_data_ptr<uint8_t>();
  std::vector<int64_t> offsets{0};
  for (int64_t sample = 0; sample < bits.numel(); ++sample) {
    TORCH_CHECK_VALUE(values[sample] >= kMinBits && values[sample] <= kMaxBits, op, ": bits must be in 1..8, got ",
                      static_cast<int>(values[sample]), " for sample ", sample);
    offsets.push_back(offsets.back() + align_up(code_bytes(elements, values[sample]), kSegmentAlignment));
  }
  return offsets;
}

/// Calls body(sample, first group, last group) for all groups, in parallel.
template <class Body>
void for_samples(int64_t samples, int64_t groups, int64_t group_size, Body&& body) {
  at::parallel_for(0, samples * groups, parallel_grain(group_size), [&](int64_t first, int64_t last) {
    while (first < last) {
      const int64_t sample = first / groups;
      const int64_t end = std::min(last, (sample + 1) * groups);
      body(sample, first - sample * groups, end - sample * groups);
      first = end;
    }
  });
}

at::Tensor quantize_per_sample_cpu(const at::Tensor& input, const at::Tensor& bits, int64_t room, int64_t group_size,
                                   c10::string_view rounding, const std::optional<at::Tensor>& rng_state) {
  const QuantizedAs how = check_quantize_per_sample(input, bits, room, group_size, rounding, rng_state);
  const at::Tensor dense = samples_outermost(input);
  const int64_t samples = dense.size(0);
  const int64_t elements = elements_per_sample(dense.numel(), samples);
  const int64_t groups = group_count(elements, group_size);
  const std::vector<int64_t> offsets = code_offsets(kQuantizePerSample, bits, elements);
  TORCH_CHECK_VALUE(offsets.back() <= room, kQuantizePerSample, ": code_bytes must be at least ", offsets.back(),
                    " for these bits, got ", room);

  const int64_t codes = codes_offset(samples * groups);
  const at::Tensor packed = empty_bytes(codes + room, input);
  auto* bytes = packed.mutable_data_ptr<uint8_t>();
  const PackedHeader header = take_header(how.rounding, rng_state);
  write_header(header, bytes);
  uint8_t* const parameters = bytes + kHeaderBytes;
  std::fill(parameters + samples * groups * static_cast<int64_t>(sizeof(GroupParameters)), bytes + codes, uint8_t{0});
  std::fill(bytes + codes + offsets.back(), bytes + codes + room, uint8_t{0});
  const auto* values = bits.const_data_ptr<uint8_t>();
  const auto* source = static_cast<const uint8_t*>(dense.const_data_ptr());
  for_samples(samples, groups, group_size, [&](int64_t sample, int64_t first, int64_t last) {
    const int width = values[sample];
    uint8_t* const sample_codes = bytes + codes + offsets[sample];
    if (first == 0) {
      std::fill(sample_codes + code_bytes(elements, width), bytes + codes + offsets[sample + 1], uint8_t{0});
    }
    cpu::quantize_groups({.elements = source + sample * elements * element_size(how.type),
                          .type = how.type,
                          .count = elements,
                          .group_size = group_size,
                          .bits = width,
                          .parameters = parameters + sample * groups * static_cast<int64_t>(sizeof(GroupParameters)),
                          .codes = sample_codes,
                          .random = header.random(),
                          .first_octet = first_octet_of_sample(sample, elements),
                          .rounding = how.rounding},
                         first, last);
  });
  return packed;
}

// The dispatcher passes symbolic integers by value. NOLINTNEXTLINE(performance-unnecessary-value-param)
at::Tensor quantize_per_sample_meta(const at::Tensor& input, const at::Tensor& bits, c10::SymInt room,
                                    int64_t group_size, c10::string_view rounding,
                                    const std::optional<at::Tensor>& rng_state) {
  check_quantize_per_sample(input, bits, room, group_size, rounding, rng_state);
  return empty_bytes(codes_offset(all_groups(input.sym_numel(), input.sym_size(0), group_size)) + room, input);
}

at::Tensor dequantize_per_sample_cpu(const at::Tensor& packed, const at::Tensor& bits, c10::IntArrayRef size,
                                     c10::IntArrayRef stride, at::ScalarType dtype, int64_t group_size) {
  const ElementType type = check_dequantize_per_sample(packed, bits, c10::fromIntArrayRefSlow(size),
                                                       c10::fromIntArrayRefSlow(stride), dtype, group_size);
  at::Tensor output = at::empty_strided(size, stride, packed.options().dtype(dtype));
  const int64_t samples = size[0];
  const int64_t elements = elements_per_sample(output.numel(), samples);
  const int64_t groups = group_count(elements, group_size);
  const int64_t codes = codes_offset(samples * groups);
  const std::vector<int64_t> offsets = code_offsets(kDequantizePerSample, bits, elements);
  TORCH_CHECK_VALUE(codes + offsets.back() <= packed.numel(), kDequantizePerSample, ": packed must have at least ",
                    codes + offsets.back(), " bytes for these bits, got ", packed.numel());
  const auto* values = bits.const_data_ptr<uint8_t>();
  const auto* bytes = packed.const_data_ptr<uint8_t>();
  const PackedHeader header = read_header(bytes);
  auto* target = static_cast<uint8_t*>(output.mutable_data_ptr());
  for_samples(samples, groups, group_size, [&](int64_t sample, int64_t first, int64_t last) {
    cpu::dequantize_groups(
        {.header = header,
         .parameters = bytes + kHeaderBytes + sample * groups * static_cast<int64_t>(sizeof(GroupParameters)),
         .codes = bytes + codes + offsets[sample],
         .count = elements,
         .group_size = group_size,
         .bits = values[sample],
         .type = type,
         .first_octet = first_octet_of_sample(sample, elements),
         .elements = target + sample * elements * element_size(type)},
        first, last);
  });
  return output;
}

at::Tensor dequantize_per_sample_meta(const at::Tensor& packed, const at::Tensor& bits, c10::SymIntArrayRef size,
                                      c10::SymIntArrayRef stride, at::ScalarType dtype, int64_t group_size) {
  check_dequantize_per_sample(packed, bits, size, stride, dtype, group_size);
  return at::empty_strided_symint(size, stride, packed.options().dtype(dtype));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "quantize_per_sample(Tensor input, Tensor bits, SymInt code_bytes, int group_size, str rounding='dithered', "
      "Tensor(a!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def(
      "dequantize_per_sample(Tensor packed, Tensor bits, SymInt[] size, SymInt[] stride, ScalarType dtype, "
      "int group_size) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("quantize_per_sample", quantize_per_sample_cpu);
  m.impl("dequantize_per_sample", dequantize_per_sample_cpu);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("quantize_per_sample", quantize_per_sample_meta);
  m.impl("dequantize_per_sample", dequantize_per_sample_meta);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("quantize_per_sample", torch::autograd::autogradNotImplementedFallback());
  m.impl("dequantize_per_sample", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  m.impl("quantize_per_sample", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

at::Tensor quantize_per_sample(const at::Tensor& input, const at::Tensor& bits, const c10::SymInt& code_bytes,
                               int64_t group_size, Rounding rounding, const std::optional<at::Tensor>& rng_state) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt, int64_t,
                                             c10::string_view, const std::optional<at::Tensor>&)>(kQuantizePerSample);
  return kOp.call(input, bits, code_bytes, group_size, name_of(rounding), rng_state);
}

at::Tensor dequantize_per_sample(const at::Tensor& packed, const at::Tensor& bits, c10::SymIntArrayRef size,
                                 c10::SymIntArrayRef stride, at::ScalarType dtype, int64_t group_size) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef,
                                             c10::SymIntArrayRef, at::ScalarType, int64_t)>(kDequantizePerSample);
  return kOp.call(packed, bits, size, stride, dtype, group_size);
}

}  // namespace actnn
