#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace actnn {

/// Lists have one entry per spatial dimension, or a single one for all.
struct MaxPoolGeometry {
  std::vector<int64_t> kernel_size;
  std::vector<int64_t> stride{};  ///< empty: the kernel size
  std::vector<int64_t> padding{0};
  std::vector<int64_t> dilation{1};
  bool ceil_mode = false;
};

/// `at::max_pool2d`, saving the position of each maximum inside its window: one byte per output element for windows of
/// up to 256 elements, else two or four. `input`: [N, C, H, W] or [C, H, W], float32, float16 or bfloat16, contiguous
/// or channels_last (kept). Result and gradient are exact; double backward raises an error.
at::Tensor max_pool2d(const at::Tensor& input, const MaxPoolGeometry& geometry);

/// The same with the flat indices (int64, y * W + x) of the maxima, as `at::max_pool2d_with_indices` gives them.
std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices(const at::Tensor& input, const MaxPoolGeometry& geometry);

/// The same over the last dimension of [N, C, L] or [C, L].
at::Tensor max_pool1d(const at::Tensor& input, const MaxPoolGeometry& geometry);
std::tuple<at::Tensor, at::Tensor> max_pool1d_with_indices(const at::Tensor& input, const MaxPoolGeometry& geometry);

/// The same over the last three dimensions of [N, C, D, H, W] or [C, D, H, W]; indices are (z * H + y) * W + x.
/// Positions are found from torch's indices, which live only during forward and backward: one byte per output element
/// is saved for windows of up to 256 elements, two for up to 32768. Where torch's index is outside the window
/// (channels_last_3d, a window of minus infinity), the window's first element gets the gradient. Autocast on the CPU
/// computes `max_pool3d` in float32, as torch does.
at::Tensor max_pool3d(const at::Tensor& input, const MaxPoolGeometry& geometry);
std::tuple<at::Tensor, at::Tensor> max_pool3d_with_indices(const at::Tensor& input, const MaxPoolGeometry& geometry);

struct AvgPoolGeometry {
  std::vector<int64_t> kernel_size;
  std::vector<int64_t> stride{};  ///< empty: the kernel size
  std::vector<int64_t> padding{0};
  bool ceil_mode = false;
  bool count_include_pad = true;
  std::optional<int64_t> divisor_override = std::nullopt;  ///< 2-D and 3-D
};

/// Average pooling over the last 1, 2 or 3 dimensions, saving shapes only. Results and gradients are exact.
at::Tensor avg_pool1d(const at::Tensor& input, const AvgPoolGeometry& geometry);
at::Tensor avg_pool2d(const at::Tensor& input, const AvgPoolGeometry& geometry);
at::Tensor avg_pool3d(const at::Tensor& input, const AvgPoolGeometry& geometry);

/// Adaptive average pooling to `output_size` (one entry per dimension), saving shapes only.
at::Tensor adaptive_avg_pool1d(const at::Tensor& input, int64_t output_size);
at::Tensor adaptive_avg_pool2d(const at::Tensor& input, const std::vector<int64_t>& output_size);
at::Tensor adaptive_avg_pool3d(const at::Tensor& input, const std::vector<int64_t>& output_size);

}  // namespace actnn
