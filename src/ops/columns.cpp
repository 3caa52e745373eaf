#include "actnn/ops/columns.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>

#include "actnn/cpu/columns.h"
#include "src/ops/checks.h"
#include "src/ops/columns_checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/packed_header.h"
#include "src/ops/rounding_names.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

constexpr const char* kQuantizeColumns = "actnn::quantize_columns";
constexpr const char* kDequantizeColumns = "actnn::dequantize_columns";

void check_group_rows(const char* op, int64_t group_rows) {
  TORCH_CHECK_VALUE(is_group_rows(group_rows), op, ": group_rows must be 64, 128 or 256, got ", group_rows);
}

void check_of_channels(const char* name, const std::optional<at::Tensor>& tensor, const at::Tensor& packed,
                       const c10::SymInt& channels) {
  if (tensor) {
    check_floating(kDequantizeColumns, name, *tensor);
    TORCH_CHECK_VALUE(tensor->dim() == 1 && tensor->sym_size(0) == channels, kDequantizeColumns, ": ", name,
                      " must have shape [", channels, "], got shape ", tensor->sym_sizes());
    TORCH_CHECK_VALUE(tensor->device() == packed.device(), kDequantizeColumns, ": ", name, " must be on ",
                      packed.device(), ", got ", tensor->device());
  }
}

ColumnLayout<c10::SymInt> column_layout(const c10::SymInt& rows, const c10::SymInt& channels, int64_t group_rows,
                                        int64_t bits) {
  return {.rows = rows,
          .channels = channels.guard_int(__FILE__, __LINE__),
          .group_rows = group_rows,
          .bits = static_cast<int>(bits)};
}

}  // namespace

QuantizedColumns check_quantize_columns(const at::Tensor& input, int64_t bits, int64_t group_rows,
                                        c10::string_view rounding, const std::optional<at::Tensor>& rng_state) {
  const ElementType type = check_floating(kQuantizeColumns, "input", input);
  TORCH_CHECK_VALUE(input.dim() >= 1, kQuantizeColumns,
                    ": input must be [..., channels], got a tensor of no dimension");
  check_bits(kQuantizeColumns, bits);
  check_group_rows(kQuantizeColumns, group_rows);
  check_rng_state(kQuantizeColumns, rng_state, input.device());
  const c10::SymInt rows = element_count(input.sym_sizes().slice(0, input.dim() - 1));
  return {type, rounding_of(kQuantizeColumns, rounding), column_layout(rows, input.sym_size(-1), group_rows, bits)};
}

DequantizedColumns check_dequantize_columns(const at::Tensor& packed, const c10::SymInt& rows,
                                            const c10::SymInt& channels, at::ScalarType dtype, int64_t bits,
                                            int64_t group_rows, const std::optional<at::Tensor>& weight,
                                            const std::optional<at::Tensor>& bias) {
  check_bits(kDequantizeColumns, bits);
  check_group_rows(kDequantizeColumns, group_rows);
  TORCH_CHECK_VALUE(rows >= 0 && channels >= 0, kDequantizeColumns, ": rows and channels must not be negative, got ",
                    rows, " and ", channels);
  const ColumnLayout<c10::SymInt> layout = column_layout(rows, channels, group_rows, bits);
  check_packed(kDequantizeColumns, "packed", packed, layout.bytes());
  check_of_channels("weight", weight, packed, channels);
  check_of_channels("bias", bias, packed, channels);
  return {check_element_type(kDequantizeColumns, dtype), layout};
}

namespace {

int64_t piece_grain(const ColumnLayout<int64_t>& layout) {
  return parallel_grain(layout.group_rows * std::min(layout.channels, cpu::kPieceChannels));
}

at::Tensor quantize_columns_cpu(const at::Tensor& input, int64_t bits, int64_t group_rows, c10::string_view rounding,
                                const std::optional<at::Tensor>& rng_state) {
  const QuantizedColumns how = check_quantize_columns(input, bits, group_rows, rounding, rng_state);
  const ColumnLayout<int64_t> layout = with_data(how.layout);
  const at::Tensor matrix = input.contiguous();
  const at::Tensor packed = empty_bytes(layout.bytes(), input);
  auto* bytes = packed.mutable_data_ptr<uint8_t>();
  const PackedHeader header = take_header(how.rounding, rng_state);
  write_header(header, bytes);
  uint8_t* const parameters = bytes + kHeaderBytes;
  std::fill(parameters + layout.groups() * static_cast<int64_t>(sizeof(GroupParameters)), bytes + layout.codes(),
            uint8_t{0});
  const cpu::QuantizeColumns columns{.elements = matrix.const_data_ptr(),
                                     .type = how.type,
                                     .layout = layout,
                                     .parameters = parameters,
                                     .codes = bytes + layout.codes(),
                                     .random = header.random(),
                                     .rounding = how.rounding};
  at::parallel_for(0, cpu::column_pieces(layout), piece_grain(layout),
                   [&](int64_t first, int64_t last) { cpu::quantize_columns(columns, first, last); });
  return packed;
}

at::Tensor quantize_columns_meta(const at::Tensor& input, int64_t bits, int64_t group_rows, c10::string_view rounding,
                                 const std::optional<at::Tensor>& rng_state) {
  return empty_bytes(check_quantize_columns(input, bits, group_rows, rounding, rng_state).layout.bytes(), input);
}

at::Tensor dequantize_columns_cpu(const at::Tensor& packed, int64_t rows, int64_t channels, at::ScalarType dtype,
                                  int64_t bits, int64_t group_rows, const std::optional<at::Tensor>& weight,
                                  const std::optional<at::Tensor>& bias) {
  const DequantizedColumns how =
      check_dequantize_columns(packed, rows, channels, dtype, bits, group_rows, weight, bias);
  const ColumnLayout<int64_t> layout = with_data(how.layout);
  at::Tensor output = at::empty({rows, channels}, packed.options().dtype(dtype));
  const auto* bytes = packed.const_data_ptr<uint8_t>();
  const cpu::DequantizeColumns columns{.header = read_header(bytes),
                                       .parameters = bytes + kHeaderBytes,
                                       .codes = bytes + layout.codes(),
                                       .layout = layout,
                                       .type = how.type,
                                       .elements = output.mutable_data_ptr()};
  at::parallel_for(0, cpu::column_pieces(layout), piece_grain(layout),
                   [&](int64_t first, int64_t last) { cpu::dequantize_columns(columns, first, last); });
  if (weight) {
    output.mul_(with_dtype(*weight, dtype));
  }
  if (bias) {
    output.add_(with_dtype(*bias, dtype));
  }
  return output;
}

at::Tensor dequantize_columns_meta(const at::Tensor& packed, c10::SymInt rows, c10::SymInt channels,
                                   at::ScalarType dtype, int64_t bits, int64_t group_rows,
                                   const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias) {
  check_dequantize_columns(packed, rows, channels, dtype, bits, group_rows, weight, bias);
  return at::empty_symint({std::move(rows), std::move(channels)}, packed.options().dtype(dtype));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "quantize_columns(Tensor input, int bits, int group_rows, str rounding='dithered', Tensor(a!)? rng_state=None) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def(
      "dequantize_columns(Tensor packed, SymInt rows, SymInt channels, ScalarType dtype, int bits, int group_rows, "
      "Tensor? weight=None, Tensor? bias=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("quantize_columns", quantize_columns_cpu);
  m.impl("dequantize_columns", dequantize_columns_cpu);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("quantize_columns", quantize_columns_meta);
  m.impl("dequantize_columns", dequantize_columns_meta);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("quantize_columns", torch::autograd::autogradNotImplementedFallback());
  m.impl("dequantize_columns", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  m.impl("quantize_columns", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

at::Tensor quantize_columns(const at::Tensor& input, const ColumnQuantization& quantization,
                            const std::optional<at::Tensor>& rng_state) {
  static const auto kOp =
      find_op<at::Tensor(const at::Tensor&, int64_t, int64_t, c10::string_view, const std::optional<at::Tensor>&)>(
          kQuantizeColumns);
  return kOp.call(input, quantization.bits, quantization.group_rows, name_of(quantization.rounding), rng_state);
}

at::Tensor dequantize_columns(const at::Tensor& packed, const c10::SymInt& rows, const c10::SymInt& channels,
                              at::ScalarType dtype, const ColumnQuantization& quantization,
                              const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias) {
  static const auto kOp =
      find_op<at::Tensor(const at::Tensor&, c10::SymInt, c10::SymInt, at::ScalarType, int64_t, int64_t,
                         const std::optional<at::Tensor>&, const std::optional<at::Tensor>&)>(kDequantizeColumns);
  return kOp.call(packed, rows, channels, dtype, quantization.bits, quantization.group_rows, weight, bias);
}

}  // namespace actnn
