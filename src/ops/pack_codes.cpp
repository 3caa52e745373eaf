#include "actnn/ops/pack_codes.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "actnn/core/bit_packing.h"
#include "actnn/core/layout.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

constexpr const char* kPack = "actnn::pack_codes";
constexpr const char* kUnpack = "actnn::unpack_codes";

void check_bits_of_samples(const char* op, const at::Tensor& bits, c10::Device device) {
  TORCH_CHECK_TYPE(bits.scalar_type() == at::kByte, op, ": bits must be uint8, got ", bits.scalar_type());
  TORCH_CHECK_VALUE(bits.dim() == 1, op, ": bits must be 1-D with an entry per sample, got shape ", bits.sym_sizes());
  TORCH_CHECK_VALUE(bits.device() == device, op, ": bits must be on the device of the data, ", device, ", got ",
                    bits.device());
}

void check_pack(const at::Tensor& codes, const at::Tensor& bits, const c10::SymInt& bytes) {
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte, kPack, ": codes must be uint8, got ", codes.scalar_type());
  TORCH_CHECK_VALUE(codes.dim() == 2, kPack, ": codes must have shape [samples, elements], got ", codes.sym_sizes());
  check_bits_of_samples(kPack, bits, codes.device());
  TORCH_CHECK_VALUE(bits.sym_numel() == codes.sym_size(0), kPack, ": bits must have one entry per sample (",
                    codes.sym_size(0), "), got ", bits.sym_numel());
  TORCH_CHECK_VALUE(bytes >= 0, kPack, ": bytes must not be negative, got ", bytes);
}

void check_unpack(const at::Tensor& packed, const at::Tensor& bits, const c10::SymInt& elements) {
  TORCH_CHECK_TYPE(packed.scalar_type() == at::kByte, kUnpack, ": packed must be uint8, got ", packed.scalar_type());
  TORCH_CHECK_VALUE(packed.dim() == 1, kUnpack, ": packed must be 1-D, got shape ", packed.sym_sizes());
  check_bits_of_samples(kUnpack, bits, packed.device());
  TORCH_CHECK_VALUE(elements >= 0, kUnpack, ": elements must not be negative, got ", elements);
  // Also keeps every size below from overflowing.
  TORCH_CHECK_VALUE(bits.sym_numel() == 0 || elements <= packed.sym_numel() * kOctet, kUnpack,
                    ": elements must be at most 8 per byte of packed (", packed.sym_numel(), " bytes), got ", elements);
}

/// Where each sample's bytes begin; the last entry is their end.
std::vector<int64_t> byte_offsets(const char* op, const at::Tensor& bits, int64_t elements, const char* argument,
                                  int64_t bytes) {
  const auto* values = bits.const_data_ptr<uint8_t>();
  std::vector<int64_t> offsets{0};
  for (int64_t sample = 0; sample < bits.numel(); ++sample) {
    TORCH_CHECK_VALUE(values[sample] >= kMinBits && values[sample] <= kMaxBits, op, ": bits must be in 1..8, got ",
                      static_cast<int>(values[sample]), " for sample ", sample);
    offsets.push_back(offsets.back() + code_bytes(elements, values[sample]));
  }
  TORCH_CHECK_VALUE(offsets.back() == bytes, op, ": ", argument, " must be ", offsets.back(), " for these bits and ",
                    elements, " elements per sample, got ", bytes);
  return offsets;
}

/// Calls body(sample, octet) for all octets of all samples, in parallel.
template <class Body>
void for_octets(int64_t samples, int64_t octets, Body&& body) {
  at::parallel_for(0, samples * octets, parallel_grain(kOctet), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      body(i / octets, i % octets);
    }
  });
}

at::Tensor pack_cpu(const at::Tensor& codes, const at::Tensor& bits, int64_t bytes) {
  check_pack(codes, bits, bytes);
  const at::Tensor rows = codes.contiguous();
  const at::Tensor widths = bits.contiguous();
  const int64_t elements = rows.size(1);
  const std::vector<int64_t> offsets = byte_offsets(kPack, widths, elements, "bytes", bytes);
  at::Tensor packed = empty_bytes(bytes, codes);
  const auto* from = rows.const_data_ptr<uint8_t>();
  const auto* width = widths.const_data_ptr<uint8_t>();
  auto* to = packed.mutable_data_ptr<uint8_t>();
  for_octets(rows.size(0), ceil_div(elements, kOctet), [&](int64_t sample, int64_t octet) {
    const OctetSteps steps(width[sample]);
    uint64_t values = 0;
    std::memcpy(&values, from + sample * elements + octet * kOctet, std::min(kOctet, elements - octet * kOctet));
    values &= 0x0101010101010101u * ((1u << width[sample]) - 1u);
    const uint64_t stream = pack_octet(values, steps);
    std::memcpy(to + offsets[sample] + octet * width[sample], &stream, width[sample]);
  });
  return packed;
}

at::Tensor unpack_cpu(const at::Tensor& packed, const at::Tensor& bits, int64_t elements) {
  check_unpack(packed, bits, elements);
  const at::Tensor stream = packed.contiguous();
  const at::Tensor widths = bits.contiguous();
  const std::vector<int64_t> offsets = byte_offsets(kUnpack, widths, elements, "packed's bytes", packed.numel());
  at::Tensor codes = at::empty({bits.numel(), elements}, packed.options());
  const auto* from = stream.const_data_ptr<uint8_t>();
  const auto* width = widths.const_data_ptr<uint8_t>();
  auto* to = codes.mutable_data_ptr<uint8_t>();
  for_octets(bits.numel(), ceil_div(elements, kOctet), [&](int64_t sample, int64_t octet) {
    uint64_t values = 0;
    std::memcpy(&values, from + offsets[sample] + octet * width[sample], width[sample]);
    values = unpack_octet(values, OctetSteps(width[sample]));
    std::memcpy(to + sample * elements + octet * kOctet, &values, std::min(kOctet, elements - octet * kOctet));
  });
  return codes;
}

// The same with torch's operations, for other devices. Nothing here waits for the device: the host does not see the
// bits.

/// The bits of samples as int64, in 1..8 whatever they were.
at::Tensor widths_of(const at::Tensor& bits) { return bits.to(at::kLong).clamp(kMinBits, kMaxBits); }

at::Tensor pack_anywhere(const at::Tensor& codes, const at::Tensor& bits, int64_t bytes) {
  check_pack(codes, bits, bytes);
  const int64_t elements = codes.size(1);
  const int64_t octets = ceil_div(elements, kOctet);
  at::Tensor packed = at::zeros({bytes}, codes.options());
  if (codes.numel() == 0 || bytes == 0) {
    return packed;
  }
  const at::Tensor rows = at::constant_pad_nd(codes, {0, octets * kOctet - elements}).flatten();
  const at::Tensor widths = widths_of(bits);
  const at::Tensor ends = (widths * octets).cumsum(0);
  // For every byte: its sample, octet, and place in the octet.
  const at::Tensor place = at::arange(bytes, ends.options());
  const at::Tensor sample =
      at::searchsorted(ends, place, /*out_int32=*/false, /*right=*/true).clamp_max(bits.numel() - 1);
  const at::Tensor width = widths.index_select(0, sample);
  const at::Tensor within = (place - (ends - widths * octets).index_select(0, sample)).clamp_min(0);
  const at::Tensor octet = within.floor_divide(width).clamp_max(octets - 1);
  const at::Tensor first_code = (sample * octets + octet) * kOctet;
  const at::Tensor first_bit = within.remainder(width) * kOctet;
  for (int64_t bit = 0; bit < kOctet; ++bit) {
    const at::Tensor position = first_bit + bit;
    const at::Tensor code = rows.index_select(0, first_code + position.floor_divide(width)).to(at::kLong);
    packed += code.bitwise_right_shift(position.remainder(width)).bitwise_and(1).bitwise_left_shift(bit).to(at::kByte);
  }
  return packed;
}

at::Tensor unpack_anywhere(const at::Tensor& packed, const at::Tensor& bits, int64_t elements) {
  check_unpack(packed, bits, elements);
  const int64_t samples = bits.numel();
  const int64_t bytes = packed.numel();
  if (samples == 0 || elements == 0 || bytes == 0) {
    return at::zeros({samples, elements}, packed.options());
  }
  const int64_t octets = ceil_div(elements, kOctet);
  const at::Tensor widths = widths_of(bits);
  const at::Tensor begins = (widths * octets).cumsum(0) - widths * octets;
  const at::Tensor width = widths.unsqueeze(1);
  const at::Tensor element = at::arange(elements, widths.options());
  // A code lies in at most two neighbouring bytes.
  const at::Tensor position = element.remainder(kOctet).unsqueeze(0) * width;
  const at::Tensor low =
      begins.unsqueeze(1) + element.floor_divide(kOctet).unsqueeze(0) * width + position.floor_divide(kOctet);
  const auto byte_at = [&](const at::Tensor& index) {
    return packed.index_select(0, index.clamp_max(bytes - 1).flatten()).to(at::kLong).view({samples, elements});
  };
  const at::Tensor window = byte_at(low) + byte_at(low + 1).bitwise_left_shift(kOctet);
  const at::Tensor highest = at::ones_like(width).bitwise_left_shift(width) - 1;
  return window.bitwise_right_shift(position.remainder(kOctet)).bitwise_and(highest).to(at::kByte);
}

// The dispatcher passes symbolic integers by value. NOLINTNEXTLINE(performance-unnecessary-value-param)
at::Tensor pack_meta(const at::Tensor& codes, const at::Tensor& bits, c10::SymInt bytes) {
  check_pack(codes, bits, bytes);
  return empty_bytes(bytes, codes);
}

// NOLINTNEXTLINE(performance-unnecessary-value-param)
at::Tensor unpack_meta(const at::Tensor& packed, const at::Tensor& bits, c10::SymInt elements) {
  check_unpack(packed, bits, elements);
  return at::empty_symint({bits.sym_numel(), elements}, packed.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def("pack_codes(Tensor codes, Tensor bits, SymInt bytes) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("unpack_codes(Tensor packed, Tensor bits, SymInt elements) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("pack_codes", pack_cpu);
  m.impl("unpack_codes", unpack_cpu);
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("pack_codes", pack_anywhere);
  m.impl("unpack_codes", unpack_anywhere);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("pack_codes", pack_meta);
  m.impl("unpack_codes", unpack_meta);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("pack_codes", torch::autograd::autogradNotImplementedFallback());
  m.impl("unpack_codes", torch::autograd::autogradNotImplementedFallback());
}

at::Tensor pack_codes(const at::Tensor& codes, const at::Tensor& bits, const c10::SymInt& bytes) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt)>(kPack);
  return kOp.call(codes, bits, bytes);
}

at::Tensor unpack_codes(const at::Tensor& packed, const at::Tensor& bits, const c10::SymInt& elements) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt)>(kUnpack);
  return kOp.call(packed, bits, elements);
}

}  // namespace actnn
