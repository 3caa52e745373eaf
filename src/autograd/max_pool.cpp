#include "actnn/ops/max_pool.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "actnn/autograd/pooling.h"
#include "src/autograd/pool_lists.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"

namespace actnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kMaxPool = "actnn::max_pool2d";
constexpr const char* kMaxPoolIndices = "actnn::max_pool2d_with_indices";

std::array<int64_t, 2> as_pair(const char* argument, c10::IntArrayRef list) {
  const std::vector<int64_t> expanded = expand_list(kMaxPool, argument, list, 2);
  return {expanded[0], expanded[1]};
}

MaxPool2dWindow window_of(c10::IntArrayRef kernel_size, c10::IntArrayRef stride, c10::IntArrayRef padding,
                          c10::IntArrayRef dilation, bool ceil_mode) {
  return {.kernel_size = as_pair("kernel_size", kernel_size),
          .stride = as_pair("stride", stride.empty() ? kernel_size : stride),
          .padding = as_pair("padding", padding),
          .dilation = as_pair("dilation", dilation),
          .ceil_mode = ceil_mode};
}

at::Tensor indices_of(const at::Tensor& input, const at::Tensor& positions, const MaxPool2dWindow& window) {
  return max_pool2d_indices(positions, input.sym_sizes(), pools_channels_last(input), window);
}

/// Returns {output} or, on request, {output, indices}.
class MaxPool2d : public torch::autograd::Function<MaxPool2d> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const MaxPool2dWindow& window,
                               bool with_indices) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, positions] = max_pool2d_pack(input, window);
    ctx->save_for_backward({positions});
    ctx->saved_data["input_size"] = input.sym_sizes().vec();
    ctx->saved_data["channels_last"] = pools_channels_last(input);
    ctx->saved_data["kernel_size"] = c10::IntArrayRef(window.kernel_size).vec();
    ctx->saved_data["stride"] = c10::IntArrayRef(window.stride).vec();
    ctx->saved_data["padding"] = c10::IntArrayRef(window.padding).vec();
    ctx->saved_data["dilation"] = c10::IntArrayRef(window.dilation).vec();
    ctx->saved_data["ceil_mode"] = window.ceil_mode;
    if (!with_indices) {
      return {output};
    }
    const at::Tensor indices = indices_of(input, positions, window);
    ctx->mark_non_differentiable({indices});
    return {output, indices};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(), kMaxPool,
                                ": its backward cannot be differentiated; call backward without create_graph, or use "
                                "torch's own layer where second derivatives are needed");
    auto& data = ctx->saved_data;
    const variable_list saved = ctx->get_saved_variables();
    const MaxPool2dWindow window =
        window_of(data["kernel_size"].toIntVector(), data["stride"].toIntVector(), data["padding"].toIntVector(),
                  data["dilation"].toIntVector(), data["ceil_mode"].toBool());
    return {max_pool2d_pack_backward(grad_outputs[0], saved[0], data["input_size"].toSymIntVector(),
                                     data["channels_last"].toBool(), window),
            {},
            {}};
  }
};

variable_list max_pool(const at::Tensor& input, const MaxPool2dWindow& window, bool with_indices) {
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return MaxPool2d::apply(input, window, with_indices);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  auto [output, positions] = max_pool2d_pack(input, window);
  return with_indices ? variable_list{output, indices_of(input, positions, window)} : variable_list{output};
}

at::Tensor max_pool2d_kernel(const at::Tensor& input, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                             c10::IntArrayRef padding, c10::IntArrayRef dilation, bool ceil_mode) {
  check_floating(kMaxPool, "input", input);
  return max_pool(input, window_of(kernel_size, stride, padding, dilation, ceil_mode), false)[0];
}

std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices_kernel(const at::Tensor& input, c10::IntArrayRef kernel_size,
                                                                  c10::IntArrayRef stride, c10::IntArrayRef padding,
                                                                  c10::IntArrayRef dilation, bool ceil_mode) {
  check_floating(kMaxPoolIndices, "input", input);
  const variable_list results = max_pool(input, window_of(kernel_size, stride, padding, dilation, ceil_mode), true);
  return {results[0], results[1]};
}

MaxPoolGeometry as_plane(const MaxPoolGeometry& geometry) {
  TORCH_CHECK_VALUE(geometry.kernel_size.size() == 1, "actnn::max_pool1d: kernel_size must have 1 entry, got ",
                    geometry.kernel_size);
  return {.kernel_size = with_unit(geometry.kernel_size, 1),
          .stride = with_unit(geometry.stride, 1),
          .padding = with_unit(geometry.padding, 0),
          .dilation = with_unit(geometry.dilation, 1),
          .ceil_mode = geometry.ceil_mode};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "max_pool2d(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, "
      "bool ceil_mode=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "max_pool2d_with_indices(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, "
      "int[2] dilation=1, bool ceil_mode=False) -> (Tensor output, Tensor indices)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("max_pool2d", max_pool2d_kernel);
  m.impl("max_pool2d_with_indices", max_pool2d_with_indices_kernel);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("max_pool2d", max_pool2d_kernel);
  m.impl("max_pool2d_with_indices", max_pool2d_with_indices_kernel);
}

at::Tensor max_pool1d(const at::Tensor& input, const MaxPoolGeometry& geometry) {
  return actnn::max_pool2d(input.unsqueeze(-2), as_plane(geometry)).squeeze(-2);
}

std::tuple<at::Tensor, at::Tensor> max_pool1d_with_indices(const at::Tensor& input, const MaxPoolGeometry& geometry) {
  const auto [output, indices] = actnn::max_pool2d_with_indices(input.unsqueeze(-2), as_plane(geometry));
  return {output.squeeze(-2), indices.squeeze(-2)};
}

at::Tensor max_pool2d(const at::Tensor& input, const MaxPoolGeometry& geometry) {
  static const auto kHandle = find_op<at::Tensor(const at::Tensor&, c10::IntArrayRef, c10::IntArrayRef,
                                                 c10::IntArrayRef, c10::IntArrayRef, bool)>(kMaxPool);
  return kHandle.call(input, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation,
                      geometry.ceil_mode);
}

std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices(const at::Tensor& input, const MaxPoolGeometry& geometry) {
  static const auto kHandle =
      find_op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, c10::IntArrayRef, c10::IntArrayRef,
                                                 c10::IntArrayRef, c10::IntArrayRef, bool)>(kMaxPoolIndices);
  return kHandle.call(input, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation,
                      geometry.ceil_mode);
}

}  // namespace actnn
