#include "src/autograd/max_pool3d.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/max_pool3d_with_indices.h>
#include <ATen/ops/max_pool3d_with_indices_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "actnn/autograd/pooling.h"
#include "src/autograd/autocast.h"
#include "src/autograd/saved_activation.h"
#include "src/autograd/small_integers.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/tensors.h"

// Torch's kernels, with the position of a maximum inside its window in the place of its int64 index.

namespace actnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kMaxPool3dName = "actnn::max_pool3d";
constexpr const char* kOpIndices = "actnn::max_pool3d_with_indices";

/// The input's [D, H, W].
using Extents = std::vector<c10::SymInt>;

/// Where the windows of the outputs begin along spatial dimension `d`, in a shape that broadcasts to `outputs`.
at::Tensor window_starts(const at::Tensor& outputs, const MaxPoolGeometry& geometry, size_t d) {
  const auto dimension = static_cast<int64_t>(d) - 3;
  std::vector<c10::SymInt> size(3, 1);
  size[d] = outputs.sym_size(dimension);
  return at::arange(c10::Scalar(size[d]), outputs.options().dtype(at::kLong))
      .mul(geometry.stride[d])
      .sub(geometry.padding[d])
      .view_symint(size);
}

int64_t window_elements(const MaxPoolGeometry& geometry) { return element_count(geometry.kernel_size); }

/// The position inside its window of each flat index (z * H + y) * W + x.
at::Tensor positions_of(const at::Tensor& indices, const Extents& extents, const MaxPoolGeometry& geometry) {
  const at::Tensor row = indices.div(c10::Scalar(extents[2]), "floor");
  const std::array<at::Tensor, 3> coordinates{row.div(c10::Scalar(extents[1]), "floor"),
                                              row.remainder(c10::Scalar(extents[1])),
                                              indices.remainder(c10::Scalar(extents[2]))};
  at::Tensor position;
  for (size_t d = 0; d < 3; ++d) {
    const at::Tensor offset =
        coordinates[d].sub(window_starts(indices, geometry, d)).div(geometry.dilation[d], "floor");
    position = d == 0 ? offset : position.mul(geometry.kernel_size[d]).add(offset);
  }
  // A window that misses the input through dilation has no position.
  return position.clamp(0, window_elements(geometry) - 1).to(smallest_integer_type(window_elements(geometry)));
}

/// The flat indices that the positions stand for.
at::Tensor indices_of(const at::Tensor& positions, const Extents& extents, const MaxPoolGeometry& geometry) {
  const at::Tensor position = positions.to(at::kLong);
  const at::Tensor row = position.div(geometry.kernel_size[2], "floor");
  const std::array<at::Tensor, 3> offsets{row.div(geometry.kernel_size[1], "floor"),
                                          row.remainder(geometry.kernel_size[1]),
                                          position.remainder(geometry.kernel_size[2])};
  at::Tensor index;
  for (size_t d = 0; d < 3; ++d) {
    const at::Tensor coordinate = offsets[d]
                                      .mul(geometry.dilation[d])
                                      .add(window_starts(positions, geometry, d))
                                      .clamp(0, c10::Scalar(extents[d] - 1));
    index = d == 0 ? coordinate : index.mul(c10::Scalar(extents[d])).add(coordinate);
  }
  return index;
}

Extents extents_of(c10::SymIntArrayRef size) { return {size.end() - 3, size.end()}; }

}  // namespace

std::tuple<at::Tensor, at::Tensor> exact_max_pool3d(const at::Tensor& input, const MaxPoolGeometry& g) {
  return at::max_pool3d_with_indices(input, g.kernel_size, g.stride, g.padding, g.dilation, g.ceil_mode);
}

at::Tensor max_pool3d_positions(const at::Tensor& indices, c10::SymIntArrayRef size, const MaxPoolGeometry& geometry) {
  return positions_of(indices, extents_of(size), geometry);
}

at::Tensor max_pool3d_gradient(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& positions,
                               const MaxPoolGeometry& g) {
  return at::max_pool3d_with_indices_backward(grad, input, g.kernel_size, g.stride, g.padding, g.dilation, g.ceil_mode,
                                              indices_of(positions, extents_of(input.sym_sizes()), g));
}

namespace {

/// Returns (output, indices).
class MaxPool3d : public torch::autograd::Function<MaxPool3d> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const MaxPoolGeometry& geometry) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, indices] = exact_max_pool3d(input, geometry);
    save_layout(ctx, storage_order(input));
    ctx->save_for_backward({max_pool3d_positions(indices, input.sym_sizes(), geometry)});
    ctx->saved_data["kernel_size"] = geometry.kernel_size;
    ctx->saved_data["stride"] = geometry.stride;
    ctx->saved_data["padding"] = geometry.padding;
    ctx->saved_data["dilation"] = geometry.dilation;
    ctx->saved_data["ceil_mode"] = geometry.ceil_mode;
    ctx->mark_non_differentiable({indices});
    return {output, indices};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(), kMaxPool3dName,
                                ": its backward cannot be differentiated; call backward without create_graph, or use "
                                "torch's own layer where second derivatives are needed");
    auto& data = ctx->saved_data;
    const MaxPoolGeometry geometry{.kernel_size = data["kernel_size"].toIntVector(),
                                   .stride = data["stride"].toIntVector(),
                                   .padding = data["padding"].toIntVector(),
                                   .dilation = data["dilation"].toIntVector(),
                                   .ceil_mode = data["ceil_mode"].toBool()};
    const at::Tensor input = activation_like(ctx, grad_outputs[0]);
    return {max_pool3d_gradient(grad_outputs[0], input, ctx->get_saved_variables()[0], geometry), {}};
  }
};

std::vector<int64_t> check_list(const char* op, const char* argument, c10::IntArrayRef list, int64_t least) {
  std::vector<int64_t> expanded = expand_list(op, argument, list, 3);
  for (const int64_t entry : expanded) {
    TORCH_CHECK_VALUE(entry >= least, op, ": ", argument, " must be at least ", least, ", got ", list);
  }
  return expanded;
}

MaxPoolGeometry check_arguments(const char* op, const at::Tensor& input, c10::IntArrayRef kernel_size,
                                c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                                bool ceil_mode) {
  check_floating(op, "input", input);
  TORCH_CHECK_VALUE(input.dim() == 4 || input.dim() == 5, op,
                    ": input must be [N, C, D, H, W] or [C, D, H, W], got shape ", input.sym_sizes());
  MaxPoolGeometry geometry{.kernel_size = check_list(op, "kernel_size", kernel_size, 1),
                           .stride = check_list(op, "stride", stride.empty() ? kernel_size : stride, 1),
                           .padding = check_list(op, "padding", padding, 0),
                           .dilation = check_list(op, "dilation", dilation, 1),
                           .ceil_mode = ceil_mode};
  for (size_t d = 0; d < 3; ++d) {
    TORCH_CHECK_VALUE(geometry.padding[d] <= geometry.kernel_size[d] / 2, op,
                      ": padding must be at most half of the kernel size, got padding ", padding, ", kernel_size ",
                      kernel_size);
  }
  return geometry;
}

variable_list max_pool(const at::Tensor& input, const MaxPoolGeometry& geometry) {
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return MaxPool3d::apply(input, geometry);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  auto [output, indices] = exact_max_pool3d(input, geometry);
  return {output, indices};
}

at::Tensor max_pool3d_kernel(const at::Tensor& input, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                             c10::IntArrayRef padding, c10::IntArrayRef dilation, bool ceil_mode) {
  return max_pool(input, check_arguments(kMaxPool3dName, input, kernel_size, stride, padding, dilation, ceil_mode))[0];
}

std::tuple<at::Tensor, at::Tensor> max_pool3d_with_indices_kernel(const at::Tensor& input, c10::IntArrayRef kernel_size,
                                                                  c10::IntArrayRef stride, c10::IntArrayRef padding,
                                                                  c10::IntArrayRef dilation, bool ceil_mode) {
  const variable_list results =
      max_pool(input, check_arguments(kOpIndices, input, kernel_size, stride, padding, dilation, ceil_mode));
  return {results[0], results[1]};
}

const auto& max_pool3d_op() {
  static const auto kHandle = find_op<decltype(max_pool3d_kernel)>(kMaxPool3dName);
  return kHandle;
}

at::Tensor max_pool3d_autocast(const at::Tensor& input, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                               c10::IntArrayRef padding, c10::IntArrayRef dilation, bool ceil_mode) {
  const FullPrecision full(input.device().type());
  return max_pool3d_op().call(full.cast(input), kernel_size, stride, padding, dilation, ceil_mode);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "max_pool3d(Tensor input, int[3] kernel_size, int[3] stride=[], int[3] padding=0, int[3] dilation=1, "
      "bool ceil_mode=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "max_pool3d_with_indices(Tensor input, int[3] kernel_size, int[3] stride=[], int[3] padding=0, "
      "int[3] dilation=1, bool ceil_mode=False) -> (Tensor output, Tensor indices)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("max_pool3d", max_pool3d_kernel);
  m.impl("max_pool3d_with_indices", max_pool3d_with_indices_kernel);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("max_pool3d", max_pool3d_kernel);
  m.impl("max_pool3d_with_indices", max_pool3d_with_indices_kernel);
}

TORCH_LIBRARY_IMPL(actnn, AutocastCPU, m) { m.impl("max_pool3d", max_pool3d_autocast); }

at::Tensor max_pool3d(const at::Tensor& input, const MaxPoolGeometry& g) {
  return max_pool3d_op().call(input, g.kernel_size, g.stride, g.padding, g.dilation, g.ceil_mode);
}

std::tuple<at::Tensor, at::Tensor> max_pool3d_with_indices(const at::Tensor& input, const MaxPoolGeometry& g) {
  static const auto kHandle = find_op<decltype(max_pool3d_with_indices_kernel)>(kOpIndices);
  return kHandle.call(input, g.kernel_size, g.stride, g.padding, g.dilation, g.ceil_mode);
}

}  // namespace actnn
