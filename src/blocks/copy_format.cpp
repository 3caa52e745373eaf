#include "src/blocks/copy_format.h"

#include <algorithm>
#include <numeric>

#include "actnn/ops/quantize.h"
#include "src/ops/column_copy.h"
#include "src/ops/shared_copy.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

bool has_heads(size_t rank, Layout layout) { return layout == Layout::kHeads && rank == 4; }

/// Heads [batch, heads, length, size] as products make them, [batch, length, heads * size].
at::Tensor joined_heads(const at::Tensor& heads) { return heads.transpose(1, 2).flatten(2); }
std::vector<c10::SymInt> joined_sizes(c10::SymIntArrayRef size) { return {size[0], size[2], size[1] * size[3]}; }

/// Dimensions from the outermost to the innermost.
std::vector<int64_t> memory_order(size_t rank, Layout layout) {
  std::vector<int64_t> order(rank);
  std::iota(order.begin(), order.end(), 0);
  if (layout == Layout::kChannels && rank > 2) {
    std::rotate(order.begin() + 1, order.begin() + 2, order.end());
  } else if (has_heads(rank, layout)) {
    std::swap(order[1], order[2]);
  }
  return order;
}

ColumnQuantization columns_of(const CopyFormat& format, Rounding rounding = Rounding::kDithered) {
  return {.bits = format.bits, .group_rows = format.group_rows, .rounding = rounding};
}

Channels channels_of(Layout layout) { return layout == Layout::kChannels ? Channels::kSecond : Channels::kLast; }

bool is_in_columns(const CopyFormat& format, c10::SymIntArrayRef size, Layout layout) {
  return format.kind == CopyFormat::Kind::kColumns && fills_columns(size, channels_of(layout));
}

}  // namespace

std::vector<c10::SymInt> strides_of(c10::SymIntArrayRef size, Layout layout) {
  std::vector<c10::SymInt> strides(size.size());
  const std::vector<int64_t> order = memory_order(size.size(), layout);
  c10::SymInt stride = 1;
  for (size_t place = order.size(); place-- > 0;) {
    strides[order[place]] = stride;
    stride = stride * size[order[place]];
  }
  return strides;
}

at::Tensor in_layout(const at::Tensor& tensor, Layout layout) {
  if (layout == Layout::kStrided) {
    return tensor;
  }
  if (layout == Layout::kPlain || tensor.dim() <= 2) {
    return tensor.contiguous();
  }
  const std::vector<int64_t> order = memory_order(tensor.dim(), layout);
  std::vector<int64_t> back(order.size());
  for (size_t place = 0; place < order.size(); ++place) {
    back[order[place]] = static_cast<int64_t>(place);
  }
  const at::Tensor permuted = tensor.permute(order);
  return permuted.is_contiguous() ? tensor : permuted.contiguous().permute(back);
}

at::ScalarType decoding_dtype(at::ScalarType packed, at::ScalarType wanted) {
  return packed == at::kFloat && wanted == at::kBFloat16 ? wanted : packed;
}

bool is_rows_in_columns(const CopyFormat& format, c10::SymIntArrayRef size, Layout layout) {
  return layout == Layout::kPlain && is_in_columns(format, size, layout);
}

std::vector<at::Tensor> pack_copy(const at::Tensor& value, const CopyFormat& format, Layout layout, Rounding rounding) {
  if (format.kind == CopyFormat::Kind::kExact) {
    return {value};
  }
  if (has_heads(value.dim(), layout) && is_in_columns(format, joined_sizes(value.sym_sizes()), Layout::kPlain)) {
    return {pack_columns(joined_heads(value), Channels::kLast, columns_of(format, rounding))};
  }
  if (is_in_columns(format, value.sym_sizes(), layout)) {
    return {pack_columns(value, channels_of(layout), columns_of(format, rounding))};
  }
  return {quantize(value, {.bits = format.bits, .rounding = rounding})};
}

at::Tensor unpack_affine_copy(const std::vector<at::Tensor>& tensors, const CopyFormat& format,
                              c10::SymIntArrayRef size, Layout layout, at::ScalarType dtype,
                              const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias) {
  const auto is_of_channels = [](const std::optional<at::Tensor>& tensor) { return !tensor || tensor->dim() == 1; };
  if (is_in_columns(format, size, layout) && is_of_channels(weight) && is_of_channels(bias)) {
    return unpack_columns(tensors[0], size, channels_of(layout), dtype, columns_of(format), weight, bias);
  }
  at::Tensor copy = unpack_copy(tensors, format, size, layout, dtype);
  const auto broadcast = [&](const at::Tensor& parameter) {
    if (layout != Layout::kChannels) {
      return with_dtype(parameter, dtype);
    }
    std::vector<c10::SymInt> per_channel(size.size(), 1);
    per_channel[1] = size[1];
    return with_dtype(parameter, dtype).view_symint(per_channel);
  };
  if (weight) {
    copy.mul_(broadcast(*weight));
  }
  if (bias) {
    copy.add_(broadcast(*bias));
  }
  return copy;
}

at::Tensor unpack_copy(const std::vector<at::Tensor>& tensors, const CopyFormat& format, c10::SymIntArrayRef size,
                       Layout layout, at::ScalarType dtype) {
  switch (format.kind) {
    case CopyFormat::Kind::kPass:
      return in_layout(PassCopy{tensors[0], tensors[1], format.activation, format.bits}.decoded(size, dtype), layout);
    case CopyFormat::Kind::kExact:
      return with_dtype(tensors[0], dtype);
    default:
      if (has_heads(size.size(), layout) && is_in_columns(format, joined_sizes(size), Layout::kPlain)) {
        return unpack_columns(tensors[0], joined_sizes(size), Channels::kLast, dtype, columns_of(format))
            .view_symint({size[0], size[2], size[1], size[3]})
            .transpose(1, 2);
      }
      if (is_in_columns(format, size, layout)) {
        return unpack_columns(tensors[0], size, channels_of(layout), dtype, columns_of(format));
      }
      return dequantize(tensors[0], size, strides_of(size, layout), dtype, {.bits = format.bits});
  }
}

}  // namespace actnn::blocks
