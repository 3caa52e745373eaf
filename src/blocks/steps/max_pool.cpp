#include "src/blocks/steps/max_pool.h"

#include <array>
#include <tuple>
#include <utility>

#include "src/autograd/max_pool3d.h"
#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/like_value.h"
#include "src/blocks/steps/planes.h"
#include "src/blocks/steps/windows.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void MaxPool::visit_fields(FieldVisitor& fields) {
  fields.required("kernel_size", kernel_size);
  fields.required("stride", stride);
  fields.required("padding", padding);
  fields.required("dilation", dilation);
  fields.optional("ceil_mode", ceil_mode);
}

void MaxPool::check() const {
  check_inputs(*this, 1);
  check_spatial_lists(
      *this,
      {{"kernel_size", kernel_size, 1}, {"stride", stride, 1}, {"padding", padding, 0}, {"dilation", dilation, 1}});
}

MaxPoolGeometry MaxPool::volume() const {
  return {
      .kernel_size = kernel_size, .stride = stride, .padding = padding, .dilation = dilation, .ceil_mode = ceil_mode};
}

MaxPool2dWindow MaxPool::window() const {
  const auto pair = [](const std::vector<int64_t>& list, int64_t height) {
    const std::vector<int64_t> entries = plane_list(list, height);
    return std::array<int64_t, 2>{entries[0], entries[1]};
  };
  return {.kernel_size = pair(kernel_size, 1),
          .stride = pair(stride, 1),
          .padding = pair(padding, 0),
          .dilation = pair(dilation, 1),
          .ceil_mode = ceil_mode};
}

std::vector<Sizes> MaxPool::infer_sizes(const KnownSizes& known) const {
  Sizes size = known.sizes(inputs[0]);
  check_spatial_size(*this, size, kernel_size.size());
  for (size_t d = 0; d < kernel_size.size(); ++d) {
    size[d + 2] = count_windows(*this, size[d + 2], {kernel_size[d], stride[d], padding[d], dilation[d], ceil_mode});
  }
  return {size};
}

std::vector<Need> MaxPool::needs(const Wants& wants) const {
  return wants.wants(inputs[0]) ? std::vector<Need>{{output(), Form::kPositions}} : std::vector<Need>{};
}

std::vector<at::Tensor> MaxPool::compute(Operands& operands) const {
  const at::Tensor input = with_dtype(operands.value(inputs[0]), operands.dtype(output()));
  return {is_volume() ? std::get<0>(exact_max_pool3d(input, volume()))
                      : from_planes(std::get<0>(max_pool2d_pack(as_planes(input), window())), kernel_size.size())};
}

void MaxPool::forward(ForwardRun& run) const {
  if (!run.saves(output(), Form::kPositions)) {
    Step::forward(run);
    return;
  }
  const at::Tensor input = with_dtype(run.value(inputs[0]), run.dtype(output()));
  if (is_volume()) {
    auto [result, indices] = exact_max_pool3d(input, volume());
    run.save(output(), Form::kPositions, {max_pool3d_positions(indices, input.sym_sizes(), volume())});
    run.set(output(), std::move(result));
    return;
  }
  // The order of positions follows from strides, where those of extents of 1 count too: as backward takes them to be.
  const Layout layout = run.layout(inputs[0]);
  const at::Tensor dense =
      in_layout(input, layout).as_strided_symint(input.sym_sizes(), strides_of(input.sym_sizes(), layout));
  auto [result, positions] = max_pool2d_pack(as_planes(dense), window());
  run.save(output(), Form::kPositions, {std::move(positions)});
  run.set(output(), from_planes(result, kernel_size.size()));
}

void MaxPool::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (!run.wants(inputs[0])) {
    return;
  }
  const at::Tensor& positions = run.saved(output(), Form::kPositions)[0];
  if (is_volume()) {
    run.add(inputs[0], max_pool3d_gradient(grad, empty_like_value(run, inputs[0], grad), positions, volume()));
    return;
  }
  Sizes size = run.sizes(inputs[0]);
  if (size.size() == 3) {
    size.insert(size.begin() + 2, 1);
  }
  const bool channels_last = run.layout(inputs[0]) == Layout::kChannels;
  run.add(inputs[0], from_planes(max_pool2d_pack_backward(as_planes(grad), positions, size, channels_last, window()),
                                 kernel_size.size()));
}

namespace {
const RegisterStep<MaxPool> kMaxPoolStep;
}

}  // namespace actnn::blocks
