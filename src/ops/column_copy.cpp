#include "src/ops/column_copy.h"

#include "actnn/ops/quantize.h"
#include "src/ops/channel_matrix.h"

namespace actnn {
namespace {

constexpr int64_t kFewestRows = 64;
/// Those of pictures are of one scale.
constexpr int64_t kFewestImageChannels = 8;

size_t dimension_of(Channels channels, size_t dimensions) { return channels == Channels::kSecond ? 1 : dimensions - 1; }

c10::SymInt row_count(c10::SymIntArrayRef size, Channels channels) {
  const size_t dimension = dimension_of(channels, size.size());
  c10::SymInt rows = 1;
  for (size_t other = 0; other < size.size(); ++other) {
    rows = other == dimension ? rows : rows * size[other];
  }
  return rows;
}

}  // namespace

std::optional<Channels> innermost_channels(const at::Tensor& input) {
  const at::MemoryFormat format = input.suggest_memory_format();
  const bool is_innermost = format != at::MemoryFormat::Contiguous && input.is_contiguous(format);
  return is_innermost ? std::optional(Channels::kSecond) : std::nullopt;
}

bool fills_columns(c10::SymIntArrayRef size, Channels channels) {
  const bool is_wide = channels == Channels::kLast || size[1] >= kFewestImageChannels;
  return is_wide && row_count(size, channels) >= kFewestRows;
}

at::Tensor pack_columns(const at::Tensor& tensor, Channels channels, const ColumnQuantization& quantization,
                        const std::optional<at::Tensor>& rng_state) {
  return quantize_columns(channels == Channels::kSecond ? as_matrix(tensor) : tensor, quantization, rng_state);
}

at::Tensor unpack_columns(const at::Tensor& packed, c10::SymIntArrayRef size, Channels channels, at::ScalarType dtype,
                          const ColumnQuantization& quantization, const std::optional<at::Tensor>& weight,
                          const std::optional<at::Tensor>& bias) {
  const at::Tensor matrix = dequantize_columns(
      packed, row_count(size, channels), size[dimension_of(channels, size.size())], dtype, quantization, weight, bias);
  return channels == Channels::kSecond ? from_matrix(matrix, size) : matrix.view_symint(size);
}

at::Tensor unpack(const at::Tensor& packed, const PackedForm& form, c10::SymIntArrayRef size,
                  c10::SymIntArrayRef stride, at::ScalarType dtype) {
  if (form.in_columns) {
    return unpack_columns(packed, size, *form.in_columns, dtype, {.bits = form.bits, .group_rows = form.group_size});
  }
  return dequantize(packed, size, stride, dtype, {.bits = form.bits, .group_size = form.group_size});
}

}  // namespace actnn
