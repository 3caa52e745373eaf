#include "actnn/autograd/convolution.h"

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "src/autograd/autocast.h"
#include "src/autograd/save_options.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kConvolutionName = "actnn::convolution";

/// While it lives, cuDNN's benchmark mode is the one asked for.
class CudnnBenchmark {
 public:
  explicit CudnnBenchmark(std::optional<bool> wanted) : before_(at::globalContext().benchmarkCuDNN()) {
    if (wanted) {
      at::globalContext().setBenchmarkCuDNN(*wanted);
    }
  }
  CudnnBenchmark(const CudnnBenchmark&) = delete;
  CudnnBenchmark& operator=(const CudnnBenchmark&) = delete;
  ~CudnnBenchmark() { at::globalContext().setBenchmarkCuDNN(before_); }

 private:
  bool before_;
};

at::Tensor exact_convolution(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                             const ConvolutionGeometry& geometry, const ConvolutionExecution& execution) {
  const CudnnBenchmark benchmark(execution.cudnn_benchmark);
  return at::convolution(input, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.transposed,
                         geometry.output_padding, geometry.groups);
}

struct BackwardGeometry {
  std::vector<c10::SymInt> stride;
  std::vector<c10::SymInt> padding;
  std::vector<c10::SymInt> dilation;
  bool transposed;
  std::vector<c10::SymInt> output_padding;
  int64_t groups;
  bool has_bias;
};

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Gradients gradients_of(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                       const BackwardGeometry& geometry, std::array<bool, 3> wanted) {
  const std::array<c10::SymInt, 1> bias_size{geometry.transposed ? weight.sym_size(1) * geometry.groups
                                                                 : weight.sym_size(0)};
  return at::convolution_backward_symint(
      grad, input, weight, geometry.has_bias ? at::OptionalSymIntArrayRef(bias_size) : at::OptionalSymIntArrayRef(),
      geometry.stride, geometry.padding, geometry.dilation, geometry.transposed, geometry.output_padding,
      geometry.groups, wanted);
}

/// The same in parts of the batch whose input, output gradient and input gradient are `threshold` bytes or less, if a
/// single sample's are.
Gradients gradients_in_parts(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                             const BackwardGeometry& geometry, std::array<bool, 3> wanted, int64_t threshold) {
  const bool has_batch = input.dim() == weight.dim() && input.size(0) > 1;
  const auto bytes = static_cast<int64_t>(grad.nbytes() + 2 * input.nbytes());
  if (!has_batch || bytes <= threshold) {
    return gradients_of(grad, input, weight, geometry, wanted);
  }
  const int64_t samples = std::max<int64_t>(1, threshold / (bytes / input.size(0)));
  const at::Tensor grad_input = wanted[0] ? at::empty_like(input) : at::Tensor();
  at::Tensor grad_weight;
  at::Tensor grad_bias;
  for (int64_t first = 0; first < input.size(0); first += samples) {
    const int64_t length = std::min(samples, input.size(0) - first);
    const auto [part_input, part_weight, part_bias] =
        gradients_of(grad.narrow(0, first, length), input.narrow(0, first, length), weight, geometry, wanted);
    if (wanted[0]) {
      grad_input.narrow(0, first, length).copy_(part_input);
    }
    if (wanted[1]) {
      grad_weight = grad_weight.defined() ? grad_weight.add_(part_weight) : part_weight;
    }
    if (wanted[2]) {
      grad_bias = grad_bias.defined() ? grad_bias.add_(part_bias) : part_bias;
    }
  }
  return {grad_input, grad_weight, grad_bias};
}

class Convolution : public torch::autograd::Function<Convolution> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const OptionalTensor& bias, const ConvolutionGeometry& geometry,
                            const ConvolutionExecution& execution, const SaveOptions& saving) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor output = exact_convolution(input, weight, bias, geometry, execution);
    SavedActivation saved;
    if (wants_grad(weight)) {
      saved = save_activation(ctx, input, saving, innermost_channels(input));
    } else {
      save_layout(ctx, input);
    }
    ctx->save_for_backward({weight, saved.data, saved.parameters});
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->saved_data["stride"] = geometry.stride;
    ctx->saved_data["padding"] = geometry.padding;
    ctx->saved_data["dilation"] = geometry.dilation;
    ctx->saved_data["transposed"] = geometry.transposed;
    ctx->saved_data["output_padding"] = geometry.output_padding;
    ctx->saved_data["groups"] = geometry.groups;
    ctx->saved_data["cudnn_benchmark"] = execution.cudnn_benchmark;
    ctx->saved_data["pipeline_threshold"] = execution.pipeline_threshold;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kConvolutionName);
    auto& data = ctx->saved_data;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& weight = saved[0];
    const at::Tensor& grad = grad_outputs[0];
    const bool has_bias = data["has_bias"].toBool();
    const std::array<bool, 3> wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                     has_bias && ctx->needs_input_grad(2)};
    const at::Tensor input = wanted[1] ? saved_activation(ctx, {saved[1], saved[2]}) : activation_like(ctx, grad);
    const CudnnBenchmark benchmark(data["cudnn_benchmark"].toOptional<bool>());
    const BackwardGeometry geometry{data["stride"].toSymIntVector(),
                                    data["padding"].toSymIntVector(),
                                    data["dilation"].toSymIntVector(),
                                    data["transposed"].toBool(),
                                    data["output_padding"].toSymIntVector(),
                                    data["groups"].toInt(),
                                    has_bias};
    const auto threshold = data["pipeline_threshold"].toOptional<int64_t>();
    // A compiler that traces plans memory by itself.
    Gradients grads = threshold && !is_traced(grad)
                          ? gradients_in_parts(grad, input, weight, geometry, wanted, *threshold)
                          : gradients_of(grad, input, weight, geometry, wanted);
    return {std::get<0>(grads), std::get<1>(grads), std::get<2>(grads), {}, {}, {}};
  }
};

/// The geometry with one entry per spatial dimension, after all checks.
ConvolutionGeometry check_arguments(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                    const ConvolutionGeometry& geometry, const ConvolutionExecution& execution,
                                    const SaveOptions& saving) {
  check_floating(kConvolutionName, "input", input);
  check_floating(kConvolutionName, "weight", weight);
  check_save_options(kConvolutionName, input, saving);
  TORCH_CHECK_VALUE(weight.dim() >= 3 && weight.dim() <= 5, kConvolutionName,
                    ": weight must have 1 to 3 spatial dimensions (rank 3 to 5), got shape ", weight.sym_sizes());
  TORCH_CHECK_VALUE(input.dim() == weight.dim(), kConvolutionName, ": input must have rank ", weight.dim(),
                    " for weight of shape ", weight.sym_sizes(), ", got shape ", input.sym_sizes());
  TORCH_CHECK_VALUE(!execution.pipeline_threshold || *execution.pipeline_threshold > 0, kConvolutionName,
                    ": pipeline_threshold must be a positive number of bytes, got ",
                    execution.pipeline_threshold.value_or(0));
  const auto dimensions = static_cast<size_t>(weight.dim() - 2);
  return {.stride = expand_list(kConvolutionName, "stride", geometry.stride, dimensions),
          .padding = expand_list(kConvolutionName, "padding", geometry.padding, dimensions),
          .dilation = expand_list(kConvolutionName, "dilation", geometry.dilation, dimensions),
          .transposed = geometry.transposed,
          .output_padding = expand_list(kConvolutionName, "output_padding", geometry.output_padding, dimensions),
          .groups = geometry.groups};
}

template <class... Arguments>
at::Tensor convolution_autograd(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                                bool transposed, c10::IntArrayRef output_padding, int64_t groups,
                                std::optional<bool> cudnn_benchmark, std::optional<int64_t> pipeline_threshold,
                                Arguments... arguments) {
  const SaveOptions saving{kConvolutionName, arguments...};
  const ConvolutionExecution execution{cudnn_benchmark, pipeline_threshold};
  const ConvolutionGeometry geometry = check_arguments(
      input, weight, bias, {stride.vec(), padding.vec(), dilation.vec(), transposed, output_padding.vec(), groups},
      execution, saving);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return Convolution::apply(input, weight, bias, geometry, execution, saving);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return exact_convolution(input, weight, bias, geometry, execution);
}

/// Without autograd (inference mode) nothing is saved.
template <class... Arguments>
at::Tensor convolution_plain(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                             c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                             bool transposed, c10::IntArrayRef output_padding, int64_t groups,
                             std::optional<bool> cudnn_benchmark, std::optional<int64_t> pipeline_threshold,
                             Arguments... arguments) {
  const ConvolutionExecution execution{cudnn_benchmark, pipeline_threshold};
  return exact_convolution(
      input, weight, bias,
      check_arguments(input, weight, bias,
                      {stride.vec(), padding.vec(), dilation.vec(), transposed, output_padding.vec(), groups},
                      execution, SaveOptions{kConvolutionName, arguments...}),
      execution);
}

using ConvolutionSignature =
    SaveSignature<const at::Tensor&, const at::Tensor&, const OptionalTensor&, c10::IntArrayRef, c10::IntArrayRef,
                  c10::IntArrayRef, bool, c10::IntArrayRef, int64_t, std::optional<bool>, std::optional<int64_t>>;

const c10::TypedOperatorHandle<ConvolutionSignature>& convolution_op() {
  static const auto kHandle = find_op<ConvolutionSignature>(kConvolutionName);
  return kHandle;
}

template <class... Arguments>
at::Tensor convolution_autocast(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                Arguments... arguments) {
  const LowerPrecision lower(input.device().type());
  return convolution_op().call(lower.cast(input), lower.cast(weight), lower.cast(bias), arguments...);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      ("convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
       "bool transposed, int[] output_padding, int groups, bool? cudnn_benchmark=None, int? pipeline_threshold=None, " +
       kSaveSchema + ") -> Tensor")
          .c_str(),
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("convolution", static_cast<ConvolutionSignature*>(convolution_plain));
}
TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("convolution", static_cast<ConvolutionSignature*>(convolution_autograd));
}
TORCH_LIBRARY_IMPL(actnn, AutocastCPU, m) {
  m.impl("convolution", static_cast<ConvolutionSignature*>(convolution_autocast));
}
TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) {
  m.impl("convolution", static_cast<ConvolutionSignature*>(convolution_autocast));
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const ConvolutionGeometry& geometry, const Quantization& quantization,
                       const std::optional<at::Tensor>& rng_state, const Retention& retention,
                       const ConvolutionExecution& execution) {
  const auto call = [&](const at::Tensor& batch) {
    return call_saving(convolution_op(), quantization, retention, rng_state, batch, weight, bias,
                       c10::IntArrayRef(geometry.stride), c10::IntArrayRef(geometry.padding),
                       c10::IntArrayRef(geometry.dilation), geometry.transposed,
                       c10::IntArrayRef(geometry.output_padding), geometry.groups, execution.cudnn_benchmark,
                       execution.pipeline_threshold);
  };
  const bool unbatched = input.dim() + 1 == weight.dim();
  return unbatched ? call(input.unsqueeze(0)).squeeze(0) : call(input);
}

}  // namespace actnn
