#include "src/ops/column_copy.h"

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

bool fills_columns(c10::SymIntArrayRef size, Channels channels) {
  const bool is_wide = channels == Channels::kLast || size[1] >= kFewestImageChannels;
  return is_wide && row_count(size, channels) >= kFewestRows;
}

at::Tensor pack_columns(const at::Tensor& tensor, Channels channels, const ColumnQuantization& quantization,
                        const std::optional<at::Tensor>& rng_state) {
  return quantize_columns(channels == Channels::kSecond ? as_matrix(tensor) : tensor, quantization, rng_state);
}

at::Tensor unpack_columns(const at::Tensor& packed, c10::SymIntArrayRef size, Channels channels, at::ScalarType dtype,
                          const ColumnQuantization& quantization) {
  const at::Tensor matrix = dequantize_columns(packed, row_count(size, channels),
                                               size[dimension_of(channels, size.size())], dtype, quantization);
  return channels == Channels::kSecond ? from_matrix(matrix, size) : matrix.view_symint(size);
}

}  // namespace actnn
