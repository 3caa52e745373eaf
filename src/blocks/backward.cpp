#include "src/blocks/backward.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <utility>

#include "actnn/ops/mask.h"
#include "actnn/ops/max_pool.h"
#include "actnn/ops/norm_act.h"
#include "actnn/ops/quantize.h"
#include "src/autograd/add_act_gradient.h"
#include "src/autograd/channel_matrix.h"
#include "src/blocks/layers.h"
#include "src/blocks/synchronized_norm.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

/// Whether nobody else sees the memory of `tensor`.
bool is_owned(const at::Tensor& tensor) { return tensor.use_count() == 1 && tensor.storage().use_count() == 1; }

/// The gradient of a value: up to two parts, which are added where they are read.
struct Gradient {
  at::Tensor first;
  at::Tensor second;

  void add(at::Tensor part) {
    if (!first.defined()) {
      first = std::move(part);
    } else if (!second.defined()) {
      second = std::move(part);
    } else {
      join();
      second = std::move(part);
    }
  }

  /// Both parts in `first`.
  void join() {
    if (second.defined()) {
      if (!is_owned(first)) {
        std::swap(first, second);
      }
      first = is_owned(first) ? first.add_(second) : at::add(first, second);
      second.reset();
    }
  }
};

class Backward {
 public:
  Backward(const Plan& plan, const Kept& kept, BackwardArguments arguments)
      : plan_(plan),
        kept_(kept),
        arguments_(std::move(arguments)),
        gradients_(plan.program.values()),
        results_(arguments_.wanted.size()) {
    for (const at::Tensor& parameter : arguments_.parameters) {
      types_.push_back(parameter.scalar_type());
    }
    cast_convolutions(plan.program, arguments_.parameters, arguments_.dtype);
    gradients_[plan.program.output()].first = std::move(arguments_.grad);
  }

  std::vector<at::Tensor> run() {
    std::for_each(plan_.stages.rbegin(), plan_.stages.rend(),
                  [&](const Stage& stage) { std::visit([&](const auto& kind) { run_stage(kind); }, stage); });
    for (Value input = 0; input < plan_.program.inputs; ++input) {
      if (arguments_.wanted[input]) {
        gradients_[input].join();
        results_[input] = std::move(gradients_[input].first);
      }
    }
    cast_results();
    return std::move(results_);
  }

 private:
  /// Gradients of parameters in the parameters' dtypes.
  void cast_results() {
    std::vector<at::Tensor*> gradients;
    std::vector<at::ScalarType> types;
    for (size_t index = 0; index < types_.size(); ++index) {
      if (at::Tensor& gradient = results_[plan_.program.inputs + index]; gradient.defined()) {
        gradients.push_back(&gradient);
        types.push_back(types_[index]);
      }
    }
    cast_together(gradients, types);
  }

  bool wants_value(Value value) const { return kept_.wants_gradient[value]; }
  bool wants(std::optional<Index> index) const { return index && arguments_.wanted[plan_.program.inputs + *index]; }
  const at::Tensor& parameter(Index index) const { return arguments_.parameters[index]; }

  /// A parameter may be used by several layers.
  void add_result(Index index, at::Tensor gradient) {
    at::Tensor& result = results_[plan_.program.inputs + index];
    result = result.defined() ? result.add(gradient) : std::move(gradient);
  }

  /// The copy of a value; it stays until the convolution that reads it is done.
  const at::Tensor& decoded(Value value) {
    at::Tensor& tensor = decoded_[value];
    if (!tensor.defined()) {
      tensor = decode(kept_.copies.at(value));
    }
    return tensor;
  }

  /// A tensor of the value's shape, for what reads no more of it.
  at::Tensor shaped_like(Value value, const at::Tensor& grad) const {
    const TensorShape& shape = kept_.shapes.at(value);
    const auto options = grad.options().dtype(shape.dtype).memory_format(std::nullopt);
    if (grad.is_cuda() && grad.numel() != 0) {
      // Kernels of convolutions get pointers only to what they read.
      return at::from_blob(grad.data_ptr(), shape.size, shape.stride, options);
    }
    return at::empty_strided(shape.size, shape.stride, options);
  }

  void run_stage(const ConvolutionStage& stage) {
    Gradient gradient = std::exchange(gradients_[stage.output], {});
    const Convolution& convolution = stage.convolution;
    if (!gradient.first.defined()) {
      decoded_.erase(convolution.input);
      return;
    }
    gradient.join();
    at::Tensor grad = std::move(gradient.first);
    const bool wants_bias = wants(convolution.bias);
    const at::Tensor& weight = parameter(convolution.weight);
    if (wants(convolution.weight) || wants_bias) {
      const bool wants_weight = wants(convolution.weight);
      const at::Tensor input = wants_weight ? decoded(convolution.input) : shaped_like(convolution.input, grad);
      auto [none, grad_weight, grad_bias] =
          convolution_gradients(convolution, grad, input, weight, {false, wants_weight, wants_bias});
      if (wants_weight) {
        add_result(convolution.weight, std::move(grad_weight));
      }
      if (wants_bias) {
        add_result(*convolution.bias, std::move(grad_bias));
      }
    }
    decoded_.erase(convolution.input);
    if (wants_value(convolution.input)) {
      add_input_gradient(convolution, grad, weight);
    }
  }

  void add_input_gradient(const Convolution& convolution, const at::Tensor& grad, const at::Tensor& weight) {
    Gradient& gradient = gradients_[convolution.input];
    if (is_matrix_product(convolution, weight) && gradient.first.defined() && !gradient.second.defined() &&
        is_owned(gradient.first) && gradient.first.scalar_type() == grad.scalar_type()) {
      at::Tensor sum = as_matrix(gradient.first);
      const std::vector<c10::SymInt> size = gradient.first.sym_sizes().vec();
      // In place where the sum is channels_last, as a product's output that is added to.
      sum.addmm_(as_matrix(grad), weight.view({weight.size(0), weight.size(1)}));
      gradient.first = from_matrix(sum, size);
      return;
    }
    auto [grad_input, none, nothing] =
        convolution_gradients(convolution, grad, shaped_like(convolution.input, grad), weight, {true, false, false});
    gradient.add(std::move(grad_input));
  }

  /// Of the rows of channels_last tensors: 1x1, with nothing between input and output pixels.
  static bool is_matrix_product(const Convolution& convolution, const at::Tensor& weight) {
    const auto all = [](const std::vector<int64_t>& list, int64_t number) {
      return std::all_of(list.begin(), list.end(), [&](int64_t entry) { return entry == number; });
    };
    return weight.numel() == weight.size(0) * weight.size(1) && convolution.groups == 1 && all(convolution.stride, 1) &&
           all(convolution.padding, 0);
  }

  /// The convolution that makes `value`, once more, of the copy of its input.
  at::Tensor recomputed(Value value) {
    const auto& convolution = std::get<Convolution>(plan_.program.step_of(value));
    return convolve(convolution, with_dtype(decoded(convolution.input), arguments_.dtype), arguments_.parameters);
  }

  void run_stage(const NormActStage& pass) {
    Gradient gradient = std::exchange(gradients_[pass.output], {});
    if (!gradient.first.defined() || !wants_value(pass.output)) {
      return;
    }
    if (!pass.norm) {
      pass_through(pass, std::move(gradient));
      return;
    }
    const std::vector<c10::SymInt> size = gradient.first.sym_sizes().vec();
    bool owned = is_owned(gradient.first);
    const at::Tensor grad = as_matrix(gradient.first);
    owned = owned || !grad.is_alias_of(gradient.first);
    const OptionalTensor second = gradient.second.defined() ? OptionalTensor(as_matrix(gradient.second)) : std::nullopt;
    gradient = {};

    const KeptPass& kept = kept_.passes.at(pass.output);
    const bool wants_input = wants_value(pass.input);
    const bool wants_residual = pass.residual && wants_value(*pass.residual);
    const bool wants_weight = wants(pass.norm->weight);
    const bool needs_normalized = wants_weight || (wants_input && kept.batch_statistics);
    NormActCopies copies{.packed = kept.packed.defined() ? OptionalTensor(kept.packed) : std::nullopt,
                         .slope = pass.slope,
                         .bits = pass.bits,
                         .derivative = pass.derivative};
    if (kept.normalized.defined()) {
      copies.normalized = kept.normalized;
      copies.normalized_bits = pass.norm_bits;
    }
    at::Tensor input;
    if (kept.channels.defined()) {
      // What is not needed of it is multiplied by 0.
      input = needs_normalized ? as_matrix(recomputed(pass.input)) : grad;
      copies.input = input;
      copies.channels = kept.channels;
    }
    const OptionalTensor weight = in_float(at_index(arguments_.parameters, pass.norm->weight));
    auto [numbers, grad_weight, grad_bias] = norm_act_sums_and_gradients(
        copies, grad, second, kept.inverse, weight, kept.deviation, kept.batch_statistics ? grad.size(0) : 0);
    if (wants_input && kept.rows.defined()) {
      numbers = synchronized_gradients(*pass.norm, kept, weight, grad_weight, grad_bias);
    }
    if (wants_weight) {
      add_result(*pass.norm->weight, std::move(grad_weight));
    }
    if (wants(pass.norm->bias)) {
      add_result(*pass.norm->bias, std::move(grad_bias));
    }
    if (!wants_input && !wants_residual) {
      return;
    }
    const bool has_own_input = input.defined() && needs_normalized;
    at::Tensor grad_input = has_own_input ? input : owned && !wants_residual ? grad : at::empty_like(grad);
    const OptionalTensor grad_sum = wants_residual ? OptionalTensor(owned ? grad : at::empty_like(grad)) : std::nullopt;
    norm_act_input_gradient_out(copies, grad, second, numbers, grad_input, grad_sum);
    if (wants_residual) {
      gradients_[*pass.residual].add(from_matrix(*grad_sum, size));
    }
    if (wants_input) {
      gradients_[pass.input].add(from_matrix(grad_input, size));
    }
  }

  /// Without a norm only the activation counts, for both summands.
  void pass_through(const NormActStage& pass, Gradient gradient) {
    if (pass.slope != 1.0) {
      const KeptPass& kept = kept_.passes.at(pass.output);
      const std::vector<c10::SymInt> size = gradient.first.sym_sizes().vec();
      const at::Tensor grad = as_matrix(gradient.first);
      const OptionalTensor second =
          gradient.second.defined() ? OptionalTensor(as_matrix(gradient.second)) : std::nullopt;
      const at::Tensor result = add_act_gradient({.packed = kept.packed, .slope = pass.slope, .bits = pass.bits}, grad,
                                                 second, kept_.copies.at(pass.output).split->inverse);
      gradient = {from_matrix(result, size), {}};
    }
    gradient.join();
    if (pass.residual && wants_value(*pass.residual)) {
      gradients_[*pass.residual].add(gradient.first);
    }
    if (wants_value(pass.input)) {
      gradients_[pass.input].add(std::move(gradient.first));
    }
  }

  void run_stage(const ActivationStage& stage) {
    Gradient gradient = std::exchange(gradients_[stage.output], {});
    if (!gradient.first.defined() || !wants_value(stage.output)) {
      return;
    }
    gradient.join();
    const auto& [bytes, shape] = kept_.bytes.at(stage.output);
    const auto size = c10::fromIntArrayRefSlow(shape.size);
    const auto stride = c10::fromIntArrayRefSlow(shape.stride);
    const at::Tensor grad = with_strides(gradient.first, stride);
    gradients_[stage.activation.input].add(
        stage.bits == 0 ? apply_mask(grad, bytes, stride)
                        : grad.mul(dequantize(bytes, size, stride, shape.dtype, {.bits = stage.bits})));
  }

  void run_stage(const MaxPoolStage& stage) {
    Gradient gradient = std::exchange(gradients_[stage.output], {});
    if (!gradient.first.defined() || !wants_value(stage.output)) {
      return;
    }
    gradient.join();
    const auto& [positions, shape] = kept_.bytes.at(stage.output);
    const bool channels_last = shape.stride.size() == 4 && shape.stride[1] == 1;
    gradients_[stage.pool.input].add(max_pool2d_pack_backward(
        gradient.first, positions, c10::fromIntArrayRefSlow(shape.size), channels_last, stage.pool.window));
  }

  const Plan& plan_;
  const Kept& kept_;
  BackwardArguments arguments_;
  std::vector<at::ScalarType> types_;  // of the parameters that forward was given
  std::vector<Gradient> gradients_;
  std::map<Value, at::Tensor> decoded_;
  std::vector<at::Tensor> results_;
};

}  // namespace

std::vector<at::Tensor> run_backward(const Plan& plan, const Kept& kept, BackwardArguments arguments) {
  return Backward(plan, kept, std::move(arguments)).run();
}

}  // namespace actnn::blocks
