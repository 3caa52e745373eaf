#include "src/blocks/steps/convolution.h"

#include <ATen/Context.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/like_value.h"
#include "src/blocks/steps/windows.h"
#include "src/ops/channel_matrix.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

Sizes symbolic(const std::vector<int64_t>& list) { return {list.begin(), list.end()}; }

bool are_all(const std::vector<int64_t>& list, int64_t number) {
  return std::all_of(list.begin(), list.end(), [&](int64_t entry) { return entry == number; });
}

}  // namespace

void Convolution::visit_fields(FieldVisitor& fields) {
  fields.required("weight", weight);
  fields.optional("bias", bias);
  fields.required("stride", stride);
  fields.required("padding", padding);
  fields.required("dilation", dilation);
  fields.optional("groups", groups);
  fields.optional("transposed", transposed);
  fields.optional("output_padding", output_padding);
}

void Convolution::check() const {
  check_inputs(*this, 1);
  check_spatial_lists(*this, {{"stride", stride, 1}, {"padding", padding, 0}, {"dilation", dilation, 1}});
  if (transposed) {
    check_spatial_lists(*this, {{"stride", stride, 1}, {"output_padding", output_padding, 0}});
  }
  TORCH_CHECK_VALUE(transposed || output_padding.empty(),
                    "block: convolution must have an output_padding only if it is transposed, got ",
                    c10::IntArrayRef(output_padding));
  TORCH_CHECK_VALUE(groups >= 1, "block: convolution must have at least 1 group, got ", groups);
}

std::vector<Sizes> Convolution::infer_sizes(const KnownSizes& known) const {
  const Sizes& input = known.sizes(inputs[0]);
  const c10::SymIntArrayRef weights = known.sizes(weight);
  check_spatial_size(*this, input, stride.size());
  TORCH_CHECK_VALUE(weights.size() == input.size(), "block: convolution must have a weight of rank ", input.size(),
                    ", got shape ", weights);
  Sizes output{input[0], transposed ? weights[1] * groups : weights[0]};
  for (size_t d = 0; d < stride.size(); ++d) {
    const c10::SymInt& extent = input[d + 2];
    const c10::SymInt& kernel_size = weights[d + 2];
    output.push_back(transposed ? (extent - 1) * stride[d] + (output_padding[d] + 1 - 2 * padding[d]) +
                                      (kernel_size - 1) * dilation[d]
                                : count_windows(*this, extent, {kernel_size, stride[d], padding[d], dilation[d]}));
  }
  return {output};
}

std::vector<ParameterIndex> Convolution::cast_parameters() const {
  return bias ? std::vector{weight, *bias} : std::vector{weight};
}

std::vector<Need> Convolution::needs(const Wants& wants) const {
  return wants.wants(weight) ? std::vector<Need>{{inputs[0], Form::kCopy}} : std::vector<Need>{};
}

std::vector<at::Tensor> Convolution::compute(Operands& operands) const {
  const at::Tensor input = with_dtype(operands.value(inputs[0]), operands.dtype(output()));
  const std::vector<int64_t> none(stride.size(), 0);
  return {at::convolution(input, operands.parameter(weight), operands.parameter(bias), stride, padding, dilation,
                          transposed, transposed ? output_padding : none, groups)};
}

void Convolution::backward(BackwardRun& run) const {
  const at::ScalarType dtype = run.dtype(output());
  const at::Tensor grad = with_dtype(run.take_joined(output()), dtype);
  const at::Tensor& weights = run.parameter(weight);
  const bool wants_bias = run.wants(bias);
  if (run.wants(weight)) {
    const at::Tensor input = with_dtype(run.copy(inputs[0]), dtype);
    auto [none, grad_weight, grad_bias] = weight_gradients(grad, input, weights, wants_bias);
    run.add(weight, std::move(grad_weight));
    if (wants_bias) {
      run.add(*bias, std::move(grad_bias));
    }
  } else if (wants_bias) {
    std::vector<int64_t> dimensions(stride.size() + 1, 0);
    std::iota(dimensions.begin() + 1, dimensions.end(), 2);
    run.add(*bias, grad.sum(dimensions));
  }
  if (run.wants(inputs[0])) {
    add_input_gradient(run, grad, weights);
  }
}

void Convolution::add_input_gradient(BackwardRun& run, const at::Tensor& grad, const at::Tensor& weights) const {
  if (is_matrix_product(weights)) {
    if (std::optional<at::Tensor> sum = run.take_owned(inputs[0], grad.scalar_type())) {
      // In place where the sum is channels_last, as a product's output that is added to.
      at::Tensor rows = as_matrix(*sum);
      rows.addmm_(as_matrix(grad), weights.view_symint({weights.sym_size(0), weights.sym_size(1)}));
      run.add(inputs[0], from_matrix(rows, run.sizes(inputs[0])));
      return;
    }
  }
  run.add(inputs[0], input_gradient(run, grad, weights));
}

/// The gradient of a convolution's input is a transposed convolution of the gradient, and the other way round. For
/// cuDNN they are one function, and as a convolution it is given no input, which would be memory that nobody reads.
/// Elsewhere, and for float32 in groups, for which torch has kernels of its own, the op for backward takes one.
at::Tensor Convolution::input_gradient(const BackwardRun& run, const at::Tensor& grad,
                                       const at::Tensor& weights) const {
  const bool is_cudnn = grad.is_cuda() && at::globalContext().userEnabledCuDNN();
  if (!is_cudnn || (groups != 1 && grad.scalar_type() == at::kFloat)) {
    return gradients(grad, empty_like_value(run, inputs[0], grad), weights, {true, false, false})[0];
  }
  Sizes rest(stride.size(), 0);
  if (!transposed) {
    const Sizes& size = run.sizes(inputs[0]);
    for (size_t dimension = 0; dimension < rest.size(); ++dimension) {
      const auto along = static_cast<int64_t>(dimension) + 2;
      const c10::SymInt reached = (grad.sym_size(along) - 1) * stride[dimension] - 2 * padding[dimension] +
                                  (weights.sym_size(along) - 1) * dilation[dimension] + 1;
      rest[dimension] = size[dimension + 2] - reached;
    }
  }
  return at::convolution_symint(grad, weights, std::nullopt, symbolic(stride), symbolic(padding), symbolic(dilation),
                                !transposed, rest, groups);
}

/// Of the rows of channels_last tensors: 1x1, with nothing between input and output pixels.
bool Convolution::is_matrix_product(const at::Tensor& weights) const {
  return groups == 1 && is_of_pixels(weights) && are_all(stride, 1);
}

bool Convolution::is_of_pixels(const at::Tensor& weights) const {
  return !transposed && weights.sym_numel() == weights.sym_size(0) * weights.sym_size(1) && are_all(padding, 0);
}

std::array<at::Tensor, 3> Convolution::gradients(const at::Tensor& grad, const at::Tensor& input,
                                                 const at::Tensor& weights, std::array<bool, 3> wanted) const {
  const std::array<c10::SymInt, 1> bias_size{grad.sym_size(1)};
  auto [grad_input, grad_weight, grad_bias] = at::convolution_backward_symint(
      grad, input, weights, c10::SymIntArrayRef(bias_size), symbolic(stride), symbolic(padding), symbolic(dilation),
      transposed, transposed ? symbolic(output_padding) : Sizes(stride.size(), 0), groups, wanted);
  return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias)};
}

/// A strided convolution of single pixels reads some pixels only: of them, it is one without a stride. (The CPU's own
/// kernel for it writes behind its buffers, with few samples and several threads, on channels_last tensors.)
std::array<at::Tensor, 3> Convolution::weight_gradients(const at::Tensor& grad, const at::Tensor& input,
                                                        const at::Tensor& weights, bool wants_bias) const {
  const std::array<bool, 3> wanted{false, true, wants_bias};
  if (!input.is_cpu() || are_all(stride, 1) || !is_of_pixels(weights)) {
    return gradients(grad, input, weights, wanted);
  }
  at::Tensor read = input;
  for (size_t dimension = 0; dimension < stride.size(); ++dimension) {
    read = read.slice_symint(static_cast<int64_t>(dimension) + 2, std::nullopt, std::nullopt, stride[dimension]);
  }
  Convolution unstrided = *this;
  unstrided.stride.assign(stride.size(), 1);
  return unstrided.gradients(grad, in_layout(read, Layout::kChannels), weights, wanted);
}

namespace {
const RegisterStep<Convolution> kConvolutionStep;
}

}  // namespace actnn::blocks
