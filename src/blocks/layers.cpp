#include "src/blocks/layers.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>

#include <variant>

#include "actnn/ops/quantize.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void cast_convolutions(const Program& program, std::vector<at::Tensor>& parameters, at::ScalarType dtype) {
  std::vector<at::Tensor*> casts;
  for (const Step& step : program.steps) {
    if (const auto* convolution = std::get_if<Convolution>(&step)) {
      casts.push_back(&parameters[convolution->weight]);
      if (convolution->bias) {
        casts.push_back(&parameters[*convolution->bias]);
      }
    }
  }
  cast_together(casts, std::vector(casts.size(), dtype));
}

at::Tensor convolve(const Convolution& convolution, const at::Tensor& input,
                    const std::vector<at::Tensor>& parameters) {
  const std::vector<int64_t> no_padding(convolution.stride.size(), 0);
  return at::convolution(input, parameters[convolution.weight], at_index(parameters, convolution.bias),
                         convolution.stride, convolution.padding, convolution.dilation,
                         /*transposed=*/false, no_padding, convolution.groups);
}

std::array<at::Tensor, 3> convolution_gradients(const Convolution& convolution, const at::Tensor& grad,
                                                const at::Tensor& input, const at::Tensor& weight,
                                                std::array<bool, 3> wanted) {
  const std::array<int64_t, 1> bias_size{weight.size(0)};
  const std::vector<int64_t> no_padding(convolution.stride.size(), 0);
  auto [grad_input, grad_weight, grad_bias] = at::convolution_backward(
      grad, input, weight, bias_size, convolution.stride, convolution.padding, convolution.dilation,
      /*transposed=*/false, no_padding, convolution.groups, wanted);
  return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias)};
}

at::Tensor decode(const KeptCopy& copy) {
  if (copy.split) {
    const std::vector<c10::SymInt> size(copy.shape.size.begin(), copy.shape.size.end());
    return copy.split->decoded(size, copy.shape.dtype);
  }
  return dequantize(copy.packed, c10::fromIntArrayRefSlow(copy.shape.size), c10::fromIntArrayRefSlow(copy.shape.stride),
                    copy.shape.dtype, {.bits = copy.bits});
}

}  // namespace actnn::blocks
