#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <array>
#include <cstdint>
#include <tuple>

/// \file
/// 2-D max-pooling that returns the position of each maximum inside its window, as one uint8 tensor of 1, 2 or 4 bytes
/// per output element (windows of up to 256, 65536, more elements) in the output's storage order. Work on CPU, CUDA and
/// Meta, and give the same bits on all; deterministic; not differentiable.

namespace actnn {

/// Complete lists {height, width}.
struct MaxPool2dWindow {
  std::array<int64_t, 2> kernel_size;
  std::array<int64_t, 2> stride;
  std::array<int64_t, 2> padding;
  std::array<int64_t, 2> dilation;
  bool ceil_mode;
};

/// `input`: [N, C, H, W] or [C, H, W], float32, float16 or bfloat16. channels_last inputs give channels_last outputs.
/// Returns (output, positions).
std::tuple<at::Tensor, at::Tensor> max_pool2d_pack(const at::Tensor& input, const MaxPool2dWindow& window);

/// The gradient of the input, of shape `size`, from the gradient of the output; channels_last if `channels_last`, as
/// the forward's input was.
at::Tensor max_pool2d_pack_backward(const at::Tensor& grad_output, const at::Tensor& positions,
                                    c10::SymIntArrayRef size, bool channels_last, const MaxPool2dWindow& window);

/// The flat indices (int64, y * W + x) that the positions stand for, in the shape and layout of the output.
at::Tensor max_pool2d_indices(const at::Tensor& positions, c10::SymIntArrayRef size, bool channels_last,
                              const MaxPool2dWindow& window);

/// Whether `max_pool2d_pack` handles `input` as channels_last.
bool pools_channels_last(const at::Tensor& input);

}  // namespace actnn
