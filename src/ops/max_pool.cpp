#include "actnn/ops/max_pool.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <vector>

#include "actnn/cpu/max_pool.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/max_pool_checks.h"
#include "src/ops/tensors.h"
#include "src/ops/window_count.h"

namespace actnn {
namespace {

constexpr const char* kPack = "actnn::max_pool2d_pack";
constexpr const char* kBackward = "actnn::max_pool2d_pack_backward";
constexpr const char* kIndices = "actnn::max_pool2d_indices";

std::array<int64_t, 2> pair(const char* op, const char* argument, c10::IntArrayRef values, int64_t least) {
  TORCH_CHECK_VALUE(values.size() == 2, op, ": ", argument, " must have 2 entries (height, width), got ", values);
  for (const int64_t value : values) {
    TORCH_CHECK_VALUE(value >= least, op, ": ", argument, " must be at least ", least, ", got ", values);
  }
  return {values[0], values[1]};
}

MaxPool2dWindow check_window(const char* op, const MaxPool2dArguments& arguments) {
  const auto& [kernel_size, stride, padding, dilation, ceil_mode] = arguments;
  const MaxPool2dWindow window{pair(op, "kernel_size", kernel_size, 1), pair(op, "stride", stride, 1),
                               pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1), ceil_mode};
  for (size_t d = 0; d < 2; ++d) {
    TORCH_CHECK_VALUE(window.padding[d] <= ((window.kernel_size[d] - 1) * window.dilation[d] + 1) / 2, op,
                      ": padding must be at most half of the effective kernel size, got padding ", padding,
                      ", kernel_size ", kernel_size, ", dilation ", dilation);
  }
  TORCH_CHECK_VALUE(kernel_size[0] <= (int64_t{1} << 32) / kernel_size[1], op,
                    ": kernel_size must have at most 2^32 elements, got ", kernel_size);
  return window;
}

/// Shape of the output for an input of this shape, [C, H, W] or [N, C, H, W].
template <class Int>
std::vector<Int> output_size(const char* op, c10::ArrayRef<Int> input, const MaxPool2dWindow& window) {
  TORCH_CHECK_VALUE(input.size() == 3 || input.size() == 4, op, ": input must be [N, C, H, W] or [C, H, W], got ",
                    input);
  for (size_t d = input.size() == 4 ? 1 : 0; d < input.size(); ++d) {
    TORCH_CHECK_VALUE(input[d] > 0, op, ": input must have no empty dimension but the batch, got ", input);
  }
  std::vector<Int> size = input.vec();
  for (size_t d = 0; d < 2; ++d) {
    Int& extent = size[size.size() - 2 + d];
    extent = window_count(extent, SlidingWindow<Int>{.kernel_size = window.kernel_size[d],
                                                     .stride = window.stride[d],
                                                     .padding = window.padding[d],
                                                     .dilation = window.dilation[d],
                                                     .ceil_mode = window.ceil_mode});
    TORCH_CHECK_VALUE(extent > 0, op, ": the window must fit the padded input, got input ", input, ", kernel_size ",
                      c10::IntArrayRef(window.kernel_size), ", dilation ", c10::IntArrayRef(window.dilation));
  }
  return size;
}

c10::SymInt positions_size(const std::vector<c10::SymInt>& output, const MaxPool2dWindow& window) {
  return element_count(output) * position_bytes(window.kernel_size[0], window.kernel_size[1]);
}

at::MemoryFormat memory_format(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

MaxPool2dProblem problem_of(c10::IntArrayRef input, std::vector<int64_t> output, const MaxPool2dWindow& window,
                            bool channels_last) {
  const size_t last = input.size() - 1;
  const MaxPool2dShape shape{.batch = input.size() == 4 ? input[0] : 1,
                             .channels = input[last - 2],
                             .input_height = input[last - 1],
                             .input_width = input[last],
                             .output_height = output[last - 1],
                             .output_width = output[last],
                             .kernel_height = window.kernel_size[0],
                             .kernel_width = window.kernel_size[1],
                             .stride_height = window.stride[0],
                             .stride_width = window.stride[1],
                             .padding_height = window.padding[0],
                             .padding_width = window.padding[1],
                             .dilation_height = window.dilation[0],
                             .dilation_width = window.dilation[1],
                             .channels_last = channels_last};
  const int64_t bytes = element_count(output) * position_bytes(window.kernel_size[0], window.kernel_size[1]);
  return {shape, std::move(output), memory_format(channels_last), bytes};
}

ElementType check_gradient(const at::Tensor& grad_output, const at::Tensor& positions,
                           const std::vector<c10::SymInt>& output, const MaxPool2dWindow& window) {
  const ElementType type = check_floating(kBackward, "grad_output", grad_output);
  TORCH_CHECK_VALUE(grad_output.sym_sizes() == c10::SymIntArrayRef(output), kBackward,
                    ": grad_output must have the output's shape ", c10::SymIntArrayRef(output), ", got ",
                    grad_output.sym_sizes());
  check_packed(kBackward, "positions", positions, positions_size(output, window));
  TORCH_CHECK_VALUE(positions.device() == grad_output.device(), kBackward,
                    ": positions must be on grad_output's device ", grad_output.device(), ", got ", positions.device());
  return type;
}

std::vector<c10::SymInt> symbolic(const std::vector<int64_t>& size) { return {size.begin(), size.end()}; }

}  // namespace

std::pair<ElementType, MaxPool2dProblem> check_max_pool2d_pack(const at::Tensor& input,
                                                               const MaxPool2dArguments& arguments) {
  const ElementType type = check_floating(kPack, "input", input);
  const MaxPool2dWindow window = check_window(kPack, arguments);
  return {type,
          problem_of(input.sizes(), output_size(kPack, input.sizes(), window), window, pools_channels_last(input))};
}

std::pair<ElementType, MaxPool2dProblem> check_max_pool2d_backward(const at::Tensor& grad_output,
                                                                   const at::Tensor& positions, c10::IntArrayRef size,
                                                                   bool channels_last,
                                                                   const MaxPool2dArguments& arguments) {
  const MaxPool2dWindow window = check_window(kBackward, arguments);
  std::vector<int64_t> output = output_size(kBackward, size, window);
  const ElementType type = check_gradient(grad_output, positions, symbolic(output), window);
  return {type, problem_of(size, std::move(output), window, channels_last)};
}

MaxPool2dProblem check_max_pool2d_indices(const at::Tensor& positions, c10::IntArrayRef size, bool channels_last,
                                          const MaxPool2dArguments& arguments) {
  const MaxPool2dWindow window = check_window(kIndices, arguments);
  MaxPool2dProblem problem = problem_of(size, output_size(kIndices, size, window), window, channels_last);
  check_packed(kIndices, "positions", positions, problem.positions_bytes);
  return problem;
}

namespace {

std::tuple<at::Tensor, at::Tensor> pack_cpu(const at::Tensor& input, c10::IntArrayRef kernel_size,
                                            c10::IntArrayRef stride, c10::IntArrayRef padding,
                                            c10::IntArrayRef dilation, bool ceil_mode) {
  const auto [type, problem] = check_max_pool2d_pack(input, {kernel_size, stride, padding, dilation, ceil_mode});
  const at::Tensor source = input.contiguous(problem.format);
  at::Tensor output = at::empty(problem.output_size, input.options().memory_format(problem.format));
  at::Tensor positions = empty_bytes(problem.positions_bytes, input);
  const int64_t items = cpu::max_pool2d_items(problem.shape);
  at::parallel_for(0, items, parallel_grain(output.numel() / std::max<int64_t>(1, items)),
                   [&, type = type, &shape = problem.shape](int64_t first, int64_t last) {
                     cpu::max_pool2d(shape, type, source.const_data_ptr(), output.mutable_data_ptr(),
                                     positions.mutable_data_ptr<uint8_t>(), first, last);
                   });
  return {output, positions};
}

std::tuple<at::Tensor, at::Tensor> pack_meta(const at::Tensor& input, c10::IntArrayRef kernel_size,
                                             c10::IntArrayRef stride, c10::IntArrayRef padding,
                                             c10::IntArrayRef dilation, bool ceil_mode) {
  check_floating(kPack, "input", input);
  const MaxPool2dWindow window = check_window(kPack, {kernel_size, stride, padding, dilation, ceil_mode});
  const std::vector<c10::SymInt> size = output_size(kPack, input.sym_sizes(), window);
  const auto format = memory_format(pools_channels_last(input));
  return {at::empty_symint(size, input.options().memory_format(format)),
          empty_bytes(positions_size(size, window), input)};
}

at::Tensor backward_cpu(const at::Tensor& grad_output, const at::Tensor& positions, c10::IntArrayRef size,
                        bool channels_last, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                        c10::IntArrayRef padding, c10::IntArrayRef dilation, bool ceil_mode) {
  const auto [type, problem] = check_max_pool2d_backward(grad_output, positions, size, channels_last,
                                                         {kernel_size, stride, padding, dilation, ceil_mode});
  const at::Tensor grad = grad_output.contiguous(problem.format);
  at::Tensor grad_input = at::empty(size, grad.options().memory_format(problem.format)).zero_();
  at::parallel_for(0, cpu::max_pool2d_backward_items(problem.shape), 1,
                   [&, type = type, &shape = problem.shape](int64_t first, int64_t last) {
                     cpu::max_pool2d_backward(shape, type, grad.const_data_ptr(), positions.const_data_ptr<uint8_t>(),
                                              grad_input.mutable_data_ptr(), first, last);
                   });
  return grad_input;
}

at::Tensor backward_meta(const at::Tensor& grad_output, const at::Tensor& positions, c10::SymIntArrayRef size,
                         bool channels_last, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                         c10::IntArrayRef padding, c10::IntArrayRef dilation, bool ceil_mode) {
  const MaxPool2dWindow window = check_window(kBackward, {kernel_size, stride, padding, dilation, ceil_mode});
  check_gradient(grad_output, positions, output_size(kBackward, size, window), window);
  return at::empty_symint(size, grad_output.options().memory_format(memory_format(channels_last)));
}

at::Tensor indices_cpu(const at::Tensor& positions, c10::IntArrayRef size, bool channels_last,
                       c10::IntArrayRef kernel_size, c10::IntArrayRef stride, c10::IntArrayRef padding,
                       c10::IntArrayRef dilation, bool ceil_mode) {
  const MaxPool2dProblem problem =
      check_max_pool2d_indices(positions, size, channels_last, {kernel_size, stride, padding, dilation, ceil_mode});
  at::Tensor indices =
      at::empty(problem.output_size, positions.options().dtype(at::kLong).memory_format(problem.format));
  at::parallel_for(0, cpu::max_pool2d_items(problem.shape), 1, [&](int64_t first, int64_t last) {
    cpu::max_pool2d_indices(problem.shape, positions.const_data_ptr<uint8_t>(), indices.mutable_data_ptr<int64_t>(),
                            first, last);
  });
  return indices;
}

at::Tensor indices_meta(const at::Tensor& positions, c10::SymIntArrayRef size, bool channels_last,
                        c10::IntArrayRef kernel_size, c10::IntArrayRef stride, c10::IntArrayRef padding,
                        c10::IntArrayRef dilation, bool ceil_mode) {
  const MaxPool2dWindow window = check_window(kIndices, {kernel_size, stride, padding, dilation, ceil_mode});
  const std::vector<c10::SymInt> output = output_size(kIndices, size, window);
  check_packed(kIndices, "positions", positions, positions_size(output, window));
  return at::empty_symint(output, positions.options().dtype(at::kLong).memory_format(memory_format(channels_last)));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "max_pool2d_pack(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
      "bool ceil_mode) -> (Tensor output, Tensor positions)",
      tags);
  m.def(
      "max_pool2d_pack_backward(Tensor grad_output, Tensor positions, SymInt[] size, bool channels_last, "
      "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode) -> Tensor",
      tags);
  m.def(
      "max_pool2d_indices(Tensor positions, SymInt[] size, bool channels_last, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation, bool ceil_mode) -> Tensor",
      tags);
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("max_pool2d_pack", pack_cpu);
  m.impl("max_pool2d_pack_backward", backward_cpu);
  m.impl("max_pool2d_indices", indices_cpu);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("max_pool2d_pack", pack_meta);
  m.impl("max_pool2d_pack_backward", backward_meta);
  m.impl("max_pool2d_indices", indices_meta);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("max_pool2d_pack", torch::autograd::autogradNotImplementedFallback());
  m.impl("max_pool2d_pack_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("max_pool2d_indices", torch::autograd::autogradNotImplementedFallback());
}

std::tuple<at::Tensor, at::Tensor> max_pool2d_pack(const at::Tensor& input, const MaxPool2dWindow& window) {
  static const auto kOp = find_op<std::tuple<at::Tensor, at::Tensor>(
      const at::Tensor&, c10::IntArrayRef, c10::IntArrayRef, c10::IntArrayRef, c10::IntArrayRef, bool)>(kPack);
  return kOp.call(input, window.kernel_size, window.stride, window.padding, window.dilation, window.ceil_mode);
}

at::Tensor max_pool2d_pack_backward(const at::Tensor& grad_output, const at::Tensor& positions,
                                    c10::SymIntArrayRef size, bool channels_last, const MaxPool2dWindow& window) {
  static const auto kOp =
      find_op<at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef, bool, c10::IntArrayRef,
                         c10::IntArrayRef, c10::IntArrayRef, c10::IntArrayRef, bool)>(kBackward);
  return kOp.call(grad_output, positions, size, channels_last, window.kernel_size, window.stride, window.padding,
                  window.dilation, window.ceil_mode);
}

at::Tensor max_pool2d_indices(const at::Tensor& positions, c10::SymIntArrayRef size, bool channels_last,
                              const MaxPool2dWindow& window) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, c10::SymIntArrayRef, bool, c10::IntArrayRef,
                                             c10::IntArrayRef, c10::IntArrayRef, c10::IntArrayRef, bool)>(kIndices);
  return kOp.call(positions, size, channels_last, window.kernel_size, window.stride, window.padding, window.dilation,
                  window.ceil_mode);
}

bool pools_channels_last(const at::Tensor& input) {
  return input.dim() == 4 && input.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

}  // namespace actnn
