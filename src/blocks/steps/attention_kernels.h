#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <vector>

/// \file
/// Torch's attention kernels behind one pair of functions. What forward leaves for backward has the same shapes
/// whichever kernel runs: tensors of symbolic sizes, and those without data, need not know which one it is. Without
/// dropout, any kernel's backward is right for any kernel's forward, so that each is chosen where it runs. With dropout
/// the mask is the kernel's own, and backward takes the kernel that forward took.

namespace actnn::blocks {

struct AttentionArguments {
  at::Tensor query;  ///< [..., heads, length, head size], as key and value; of one dtype
  at::Tensor key;
  at::Tensor value;
  std::optional<at::Tensor> mask = std::nullopt;  ///< bool, or of the dtype of query
  bool mask_repeats = false;  ///< the mask has four dimensions and stands for as many samples after the other
  bool mask_trains = false;   ///< whether a gradient of the mask is wanted
  double probability = 0.0;
  bool causal = false;
  std::optional<double> scale = std::nullopt;
  bool grouped = false;
};

/// What the mask of dropout is made of.
struct AttentionRandomState {
  static constexpr int kTensors = 3;

  at::Tensor seed;    ///< int64, no dimensions; where the kernel wants it
  at::Tensor offset;  ///< like it
  at::Tensor kernel;  ///< int64, no dimensions, on the host: the kernel whose dropout it is

  std::vector<at::Tensor> tensors() && { return {std::move(seed), std::move(offset), std::move(kernel)}; }
  static AttentionRandomState from(const std::vector<at::Tensor>& tensors) {
    return {tensors[0], tensors[1], tensors[2]};
  }
};

struct AttentionResult {
  at::Tensor output;
  at::Tensor log_sum_exp = {};             ///< of each row of scaled and masked scores, float32 [..., heads, length]
  AttentionRandomState random_state = {};  ///< with dropout
};

/// As `at::scaled_dot_product_attention`, bit by bit without dropout, and but for groups that torch has no kernel for:
/// key and value are expanded for one. `trains`: with what backward needs.
AttentionResult attention_forward(const AttentionArguments& arguments, bool trains);

/// Of query, key, value and the mask.
using AttentionGradients = std::array<at::Tensor, 4>;
using AttentionWants = std::array<bool, 4>;

/// Gradients; undefined where they are not wanted, or not. Those of inputs that were broadcast are not summed, but that
/// of a mask that repeats is, to [m, heads, length, length].
AttentionGradients attention_backward(const AttentionArguments& arguments, const AttentionResult& result,
                                      const at::Tensor& grad, const AttentionWants& wanted);

}  // namespace actnn::blocks
