#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "actnn/autograd/retention.h"
#include "actnn/ops/quantization.h"

namespace actnn {

/// The geometry of a convolution over 1 to 3 spatial dimensions; each list has one entry per spatial dimension, or a
/// single one for all.
struct ConvolutionGeometry {
  std::vector<int64_t> stride{1};
  std::vector<int64_t> padding{0};
  std::vector<int64_t> dilation{1};
  bool transposed = false;
  std::vector<int64_t> output_padding{0};  ///< transposed only
  int64_t groups = 1;
};

/// `at::convolution`, saving a quantized copy of its input for backward.
///
/// `input`: [N, C_in, ...] with 1 to 3 spatial dimensions (without N: unbatched), float32, float16 or bfloat16, any
/// memory format. `weight`: [C_out, C_in / groups, ...], transposed: [C_in, C_out / groups, ...]. `bias`: [C_out] or
/// none. The result is the exact convolution, bit for bit. In backward the gradients of input and bias are the exact
/// ones; the gradient of weight is computed from the copy and is unbiased (exact gradient + zero-mean noise). The input
/// is saved only if the weight requires a gradient. Under autocast, inputs are cast as torch's convolution casts them.
///
/// `rng_state`: see `actnn/ops/random.h`; by default a fresh state that follows `torch::manual_seed`.
/// Double backward raises an error. Source: ActNN (Chen et al., ICML 2021), section 3.
at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const ConvolutionGeometry& geometry, const Quantization& quantization = {},
                       const std::optional<at::Tensor>& rng_state = std::nullopt, const Retention& retention = {},
                       const ConvolutionExecution& execution = {});

}  // namespace actnn
