#include "src/autograd/avg_pool.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_adaptive_avg_pool2d_backward.h>
#include <ATen/ops/_adaptive_avg_pool3d_backward.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/adaptive_avg_pool3d.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/avg_pool2d_backward.h>
#include <ATen/ops/avg_pool3d.h>
#include <ATen/ops/avg_pool3d_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "actnn/autograd/pooling.h"
#include "src/autograd/pool_lists.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/tensors.h"

namespace actnn {

at::Tensor exact_avg_pool(const at::Tensor& input, const AvgPoolGeometry& g) {
  const auto pool = g.kernel_size.size() == 2 ? at::avg_pool2d : at::avg_pool3d;
  return pool(input, g.kernel_size, g.stride, g.padding, g.ceil_mode, g.count_include_pad, g.divisor_override);
}

at::Tensor avg_pool_gradient(const at::Tensor& grad, const at::Tensor& input, const AvgPoolGeometry& g) {
  const auto backward = g.kernel_size.size() == 2 ? at::avg_pool2d_backward : at::avg_pool3d_backward;
  return backward(grad, input, g.kernel_size, g.stride, g.padding, g.ceil_mode, g.count_include_pad,
                  g.divisor_override);
}

at::Tensor exact_adaptive_avg_pool(const at::Tensor& input, c10::IntArrayRef output_size) {
  return output_size.size() == 2 ? at::adaptive_avg_pool2d(input, output_size)
                                 : at::adaptive_avg_pool3d(input, output_size);
}

bool is_global_pool(c10::IntArrayRef output_size) {
  return std::all_of(output_size.begin(), output_size.end(), [](int64_t extent) { return extent == 1; });
}

at::Tensor adaptive_avg_pool_gradient(const at::Tensor& grad, const at::Tensor& input, size_t dimensions) {
  return dimensions == 2 ? at::_adaptive_avg_pool2d_backward(grad, input)
                         : at::_adaptive_avg_pool3d_backward(grad, input);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class AvgPool : public torch::autograd::Function<AvgPool> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const AvgPoolGeometry& geometry) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save_layout(ctx, storage_order(input));
    ctx->saved_data["kernel_size"] = geometry.kernel_size;
    ctx->saved_data["stride"] = geometry.stride;
    ctx->saved_data["padding"] = geometry.padding;
    ctx->saved_data["ceil_mode"] = geometry.ceil_mode;
    ctx->saved_data["count_include_pad"] = geometry.count_include_pad;
    ctx->saved_data["divisor_override"] = geometry.divisor_override;
    return exact_avg_pool(input, geometry);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    auto& data = ctx->saved_data;
    const AvgPoolGeometry geometry{.kernel_size = data["kernel_size"].toIntVector(),
                                   .stride = data["stride"].toIntVector(),
                                   .padding = data["padding"].toIntVector(),
                                   .ceil_mode = data["ceil_mode"].toBool(),
                                   .count_include_pad = data["count_include_pad"].toBool(),
                                   .divisor_override = data["divisor_override"].toOptional<int64_t>()};
    return {avg_pool_gradient(grad_outputs[0], activation_like(ctx, grad_outputs[0]), geometry), {}};
  }
};

at::Tensor avg_pool(const char* op, const at::Tensor& input, size_t dimensions, c10::IntArrayRef kernel_size,
                    c10::IntArrayRef stride, c10::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                    std::optional<int64_t> divisor_override) {
  check_floating(op, "input", input);
  const AvgPoolGeometry geometry{.kernel_size = expand_list(op, "kernel_size", kernel_size, dimensions),
                                 .stride = expand_list(op, "stride", stride.empty() ? kernel_size : stride, dimensions),
                                 .padding = expand_list(op, "padding", padding, dimensions),
                                 .ceil_mode = ceil_mode,
                                 .count_include_pad = count_include_pad,
                                 .divisor_override = divisor_override};
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return AvgPool::apply(input, geometry);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return exact_avg_pool(input, geometry);
}

template <int kDimensions>
at::Tensor avg_pool_kernel(const at::Tensor& input, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                           c10::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override) {
  return avg_pool(kDimensions == 2 ? "actnn::avg_pool2d" : "actnn::avg_pool3d", input, kDimensions, kernel_size, stride,
                  padding, ceil_mode, count_include_pad, divisor_override);
}

class AdaptiveAvgPool : public torch::autograd::Function<AdaptiveAvgPool> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, c10::IntArrayRef output_size) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save_layout(ctx, storage_order(input));
    ctx->saved_data["output_size"] = output_size.vec();
    return exact_adaptive_avg_pool(input, output_size);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const at::Tensor& grad = grad_outputs[0];
    const std::vector<int64_t> output_size = ctx->saved_data["output_size"].toIntVector();
    const std::vector<c10::SymInt> size = ctx->saved_data["input_size"].toSymIntVector();
    if (is_global_pool(output_size)) {
      // Torch pools to one element by a mean, whose gradient is this.
      const c10::SymInt count = element_count(
          std::vector<c10::SymInt>(size.end() - static_cast<std::ptrdiff_t>(output_size.size()), size.end()));
      return {grad.expand_symint(size).div(c10::Scalar(count)), {}};
    }
    return {adaptive_avg_pool_gradient(grad, activation_like(ctx, grad), output_size.size()), {}};
  }
};

template <int kDimensions>
at::Tensor adaptive_kernel(const at::Tensor& input, c10::IntArrayRef output_size) {
  constexpr const char* kAvgPoolName = kDimensions == 2 ? "actnn::adaptive_avg_pool2d" : "actnn::adaptive_avg_pool3d";
  check_floating(kAvgPoolName, "input", input);
  const std::vector<int64_t> size = expand_list(kAvgPoolName, "output_size", output_size, kDimensions);
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return AdaptiveAvgPool::apply(input, c10::IntArrayRef(size));
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return exact_adaptive_avg_pool(input, size);
}

using AvgPoolSignature = at::Tensor(const at::Tensor&, c10::IntArrayRef, c10::IntArrayRef, c10::IntArrayRef, bool, bool,
                                    std::optional<int64_t>);
using AdaptiveSignature = at::Tensor(const at::Tensor&, c10::IntArrayRef);

at::Tensor call(const c10::TypedOperatorHandle<AvgPoolSignature>& op, const at::Tensor& input,
                const AvgPoolGeometry& g) {
  return op.call(input, g.kernel_size, g.stride, g.padding, g.ceil_mode, g.count_include_pad, g.divisor_override);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "avg_pool2d(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False, "
      "bool count_include_pad=True, int? divisor_override=None) -> Tensor",
      tags);
  m.def(
      "avg_pool3d(Tensor input, int[3] kernel_size, int[3] stride=[], int[3] padding=0, bool ceil_mode=False, "
      "bool count_include_pad=True, int? divisor_override=None) -> Tensor",
      tags);
  m.def("adaptive_avg_pool2d(Tensor input, int[2] output_size) -> Tensor", tags);
  m.def("adaptive_avg_pool3d(Tensor input, int[3] output_size) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("avg_pool2d", avg_pool_kernel<2>);
  m.impl("avg_pool3d", avg_pool_kernel<3>);
  m.impl("adaptive_avg_pool2d", adaptive_kernel<2>);
  m.impl("adaptive_avg_pool3d", adaptive_kernel<3>);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("avg_pool2d", avg_pool_kernel<2>);
  m.impl("avg_pool3d", avg_pool_kernel<3>);
  m.impl("adaptive_avg_pool2d", adaptive_kernel<2>);
  m.impl("adaptive_avg_pool3d", adaptive_kernel<3>);
}

at::Tensor avg_pool1d(const at::Tensor& input, const AvgPoolGeometry& geometry) {
  TORCH_CHECK_VALUE(geometry.kernel_size.size() == 1, "actnn::avg_pool1d: kernel_size must have 1 entry, got ",
                    geometry.kernel_size);
  TORCH_CHECK_VALUE(!geometry.divisor_override.has_value(),
                    "actnn::avg_pool1d: divisor_override must be none for 1-D pooling, got ",
                    geometry.divisor_override.value_or(0));
  AvgPoolGeometry plane = geometry;
  plane.kernel_size = with_unit(geometry.kernel_size, 1);
  plane.stride = with_unit(geometry.stride, 1);
  plane.padding = with_unit(geometry.padding, 0);
  return actnn::avg_pool2d(input.unsqueeze(-2), plane).squeeze(-2);
}

at::Tensor avg_pool2d(const at::Tensor& input, const AvgPoolGeometry& geometry) {
  static const auto kHandle = find_op<AvgPoolSignature>("actnn::avg_pool2d");
  return call(kHandle, input, geometry);
}

at::Tensor avg_pool3d(const at::Tensor& input, const AvgPoolGeometry& geometry) {
  static const auto kHandle = find_op<AvgPoolSignature>("actnn::avg_pool3d");
  return call(kHandle, input, geometry);
}

at::Tensor adaptive_avg_pool1d(const at::Tensor& input, int64_t output_size) {
  return actnn::adaptive_avg_pool2d(input.unsqueeze(-2), {1, output_size}).squeeze(-2);
}

at::Tensor adaptive_avg_pool2d(const at::Tensor& input, const std::vector<int64_t>& output_size) {
  static const auto kHandle = find_op<AdaptiveSignature>("actnn::adaptive_avg_pool2d");
  return kHandle.call(input, output_size);
}

at::Tensor adaptive_avg_pool3d(const at::Tensor& input, const std::vector<int64_t>& output_size) {
  static const auto kHandle = find_op<AdaptiveSignature>("actnn::adaptive_avg_pool3d");
  return kHandle.call(input, output_size);
}

}  // namespace actnn
