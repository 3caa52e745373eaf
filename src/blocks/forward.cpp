#include "src/blocks/forward.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/add.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "actnn/ops/mask.h"
#include "actnn/ops/norm_act.h"
#include "actnn/ops/quantize.h"
#include "src/autograd/channel_matrix.h"
#include "src/blocks/activation.h"
#include "src/blocks/layers.h"
#include "src/blocks/overloaded.h"
#include "src/blocks/synchronized_norm.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

std::vector<Value> values_read_by(const Stage& stage) {
  return std::visit(
      Overloaded{[](const ConvolutionStage& layer) { return std::vector{layer.convolution.input}; },
                 [](const NormActStage& pass) {
                   return pass.residual ? std::vector{pass.input, *pass.residual} : std::vector{pass.input};
                 },
                 [](const ActivationStage& layer) { return std::vector{layer.activation.input}; },
                 [](const MaxPoolStage& layer) { return std::vector{layer.pool.input}; }},
      stage);
}

class Forward {
 public:
  Forward(const Plan& plan, const Arguments& arguments, const std::vector<at::Tensor>& originals,
          const std::vector<bool>& wants_gradient)
      : plan_(plan),
        arguments_(arguments),
        parameters_(arguments.parameters),
        originals_(originals),
        parameter_wants_(wants_gradient.begin() + plan.program.inputs, wants_gradient.end()),
        values_(plan.program.values()),
        last_reader_(plan.program.values(), -1) {
    kept_.wants_gradient.assign(wants_gradient.begin(), wants_gradient.begin() + plan.program.inputs);
    kept_.wants_gradient.resize(plan.program.values());
    std::copy(arguments.inputs.begin(), arguments.inputs.end(), values_.begin());
    check_weights();
    cast_convolutions(plan.program, parameters_, arguments.dtype);
    for (size_t number = 0; number < plan.stages.size(); ++number) {
      for (const Value value : values_read_by(plan.stages[number])) {
        last_reader_[value] = static_cast<int64_t>(number);
      }
    }
  }

  ForwardResult run() {
    for (size_t number = 0; number < plan_.stages.size(); ++number) {
      std::visit([&](const auto& stage) { run_stage(stage); }, plan_.stages[number]);
      for (const Value value : values_read_by(plan_.stages[number])) {
        if (last_reader_[value] == static_cast<int64_t>(number)) {
          values_[value].reset();
        }
      }
    }
    return {std::move(values_[plan_.program.output()]), std::move(kept_), kept_bytes_};
  }

 private:
  void check_weights() const {
    for (const Step& step : plan_.program.steps) {
      const auto* convolution = std::get_if<Convolution>(&step);
      TORCH_CHECK_TYPE(arguments_.casts_weights || convolution == nullptr ||
                           parameters_[convolution->weight].scalar_type() == arguments_.dtype,
                       "block: without autocast, a convolution's weight must have the inputs' dtype, ",
                       arguments_.dtype, ", got ", parameters_[convolution->weight].scalar_type());
    }
  }

  bool wants(std::optional<Index> index) const { return index && parameter_wants_[*index]; }
  bool wants_value(Value value) const { return kept_.wants_gradient[value]; }

  OptionalTensor buffer(std::optional<Index> index) const { return at_index(arguments_.buffers, index); }

  void keep(const at::Tensor& tensor) { kept_bytes_ += static_cast<int64_t>(tensor.nbytes()); }

  /// The copy that a convolution's weight needs, and perhaps the norm behind it.
  void keep_copy(Value value) {
    if (kept_.copies.contains(value)) {
      return;
    }
    if (value < plan_.program.inputs) {
      if (auto known = find_copy(originals_[value])) {
        kept_.copies.emplace(value, KeptCopy{.split = known, .packed = {}, .shape = TensorShape(values_[value])});
        return;
      }
    }
    const at::Tensor dense = storage_order(values_[value]);
    // A pass packs nothing where nothing before the value is trained.
    const auto planned = plan_.packed_values.find(value);
    const int64_t bits = planned == plan_.packed_values.end() ? plan_.options.bits : planned->second;
    at::Tensor packed = quantize(dense, {.bits = bits, .stochastic = plan_.options.stochastic});
    keep(packed);
    kept_.copies.emplace(value,
                         KeptCopy{.split = {}, .packed = std::move(packed), .bits = bits, .shape = TensorShape(dense)});
  }

  /// Whether the norm that reads `value` computes it again.
  bool is_recomputed(Value value) const {
    return std::any_of(plan_.stages.begin(), plan_.stages.end(), [&](const Stage& stage) {
      const auto* pass = std::get_if<NormActStage>(&stage);
      return pass != nullptr && pass->input == value && pass->recompute && needs_normalized(*pass);
    });
  }

  /// Whether backward needs the normalized input: for the norm's weight, or because statistics depend on the input.
  bool needs_normalized(const NormActStage& pass) const {
    return pass.norm &&
           (wants(pass.norm->weight) || (arguments_.batch_statistics[pass.norm_number] && wants_value(pass.input)));
  }

  void run_stage(const ConvolutionStage& stage) {
    const Convolution& convolution = stage.convolution;
    const at::Tensor& input = values_[convolution.input];
    kept_.wants_gradient[stage.output] =
        wants_value(convolution.input) || wants(convolution.weight) || wants(convolution.bias);
    if (wants_value(stage.output)) {
      if (wants(convolution.weight) || is_recomputed(stage.output)) {
        keep_copy(convolution.input);
      }
      kept_.shapes.emplace(convolution.input, TensorShape(input));
    }
    values_[stage.output] = convolve(convolution, input, parameters_);
  }

  /// (channels, inverse, deviation) of a pass's norm; `rows` if they are those of all ranks.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> normalize(const NormActStage& pass, const at::Tensor& x,
                                                           at::Tensor& rows) {
    const BatchNorm& norm = *pass.norm;
    const bool has_bend = pass.slope != 1.0 && !pass.residual;
    const OptionalTensor weight = in_float(at_index(parameters_, norm.weight));
    const OptionalTensor bias = in_float(at_index(parameters_, norm.bias));
    const OptionalTensor running_mean = buffer(norm.running_mean);
    const OptionalTensor running_var = buffer(norm.running_var);
    if (!arguments_.batch_statistics[pass.norm_number]) {
      TORCH_CHECK_VALUE(running_mean, "block: norm ", pass.norm_number, " must take batch statistics, for it has no ",
                        "running ones");
      return norm_act_channels(with_dtype(*running_mean, at::kFloat), with_dtype(*running_var, at::kFloat), weight,
                               bias, norm.eps, has_bend);
    }
    if (norm.group_name) {
      return synchronized_channels(norm, x, parameters_, arguments_.buffers, has_bend, rows);
    }
    if (x.size(0) == 0) {
      const at::Tensor none = at::zeros({x.size(1)}, x.options().dtype(at::kFloat));
      return norm_act_channels(none, none, weight, bias, norm.eps, has_bend);
    }
    TORCH_CHECK_VALUE(x.size(0) > 1, "block: expected more than 1 value per channel when training, got input size ",
                      values_[pass.input].sizes());
    return batch_norm_channels(x, weight, bias, running_mean, running_var, buffer(norm.num_batches_tracked),
                               norm.momentum, norm.eps, has_bend);
  }

  void run_stage(const NormActStage& pass) {
    const at::Tensor& input = values_[pass.input];
    const at::Tensor x = as_matrix(input);
    at::Tensor channels;
    KeptPass kept;
    if (pass.norm) {
      std::tie(channels, kept.inverse, kept.deviation) = normalize(pass, x, kept.rows);
      kept.batch_statistics = arguments_.batch_statistics[pass.norm_number];
    }
    const bool trains_norm = pass.norm && (wants(pass.norm->weight) || wants(pass.norm->bias));
    const bool wants = wants_value(pass.input) || (pass.residual && wants_value(*pass.residual)) || trains_norm;
    kept_.wants_gradient[pass.output] = wants;

    if (!pass.norm && !pass.has_activation()) {
      values_[pass.output] = at::add(input, values_[*pass.residual]);
      return;
    }
    OptionalTensor residual;
    at::Tensor inverse = kept.inverse;
    const bool packs_normalized = wants && pass.norm_bits != 0 && needs_normalized(pass);
    const at::Tensor norm_channels = channels;
    if (pass.residual || !pass.norm) {
      if (wants && !packs_normalized) {
        kept.channels = channels;
      }
      std::tie(channels, inverse) = sum_channels(pass.norm ? OptionalTensor(channels) : std::nullopt, x);
    } else if (pass.recompute) {
      kept.channels = channels;
    }
    if (pass.residual) {
      residual = as_matrix(with_dtype(values_[*pass.residual], x.scalar_type()));
    }
    const SplitPacking packing{.bits = wants ? pass.bits : 0,
                               .keeps_below = pass.slope != 0.0 || (pass.norm && !pass.residual),
                               .stochastic = plan_.options.stochastic,
                               .derivative = {pass.derivative.function, wants ? pass.derivative.bits : 0}};
    at::Tensor y;
    at::Tensor packed;
    if (packs_normalized) {
      std::tie(y, packed, kept.normalized) =
          norm_add_act(x, *residual, channels, norm_channels, pass.slope, packing, pass.norm_bits);
      keep(kept.normalized);
    } else {
      std::tie(y, packed) = norm_act(x, residual, channels, pass.slope, packing);
    }
    values_[pass.output] = from_matrix(y, c10::fromIntArrayRefSlow(input.sizes()));
    if (!wants) {
      return;
    }
    if (packing.planes() != 0) {
      keep(packed);
      kept.packed = packed;
    }
    if (packing.bits != 0 && gives_output(packing.derivative.function)) {
      SharedCopy copy{packed, inverse, pass.slope, pass.bits, pass.derivative};
      share_copy(values_[pass.output], copy);
      kept_.copies.emplace(pass.output,
                           KeptCopy{.split = copy, .packed = {}, .shape = TensorShape(values_[pass.output])});
    }
    kept_.passes.emplace(pass.output, std::move(kept));
  }

  void run_stage(const ActivationStage& stage) {
    const at::Tensor& input = values_[stage.activation.input];
    kept_.wants_gradient[stage.output] = wants_value(stage.activation.input);
    if (wants_value(stage.output)) {
      const at::Tensor dense = storage_order(derivative(stage.activation, input));
      at::Tensor bytes = stage.bits == 0
                             ? pack_mask(dense.to(at::kBool))
                             : quantize(dense, {.bits = stage.bits, .stochastic = plan_.options.stochastic});
      keep(bytes);
      kept_.bytes.emplace(stage.output, KeptBytes{std::move(bytes), TensorShape(dense)});
    }
    values_[stage.output] = activate(stage.activation, input);
  }

  void run_stage(const MaxPoolStage& stage) {
    const at::Tensor& input = values_[stage.pool.input];
    kept_.wants_gradient[stage.output] = wants_value(stage.pool.input);
    auto [output, positions] = max_pool2d_pack(input, stage.pool.window);
    if (wants_value(stage.output)) {
      keep(positions);
      kept_.bytes.emplace(stage.output, KeptBytes{std::move(positions), TensorShape(input)});
    }
    values_[stage.output] = std::move(output);
  }

  const Plan& plan_;
  const Arguments& arguments_;
  std::vector<at::Tensor> parameters_;  // those of convolutions in the dtype of activations
  const std::vector<at::Tensor>& originals_;
  std::vector<bool> parameter_wants_;
  std::vector<at::Tensor> values_;
  std::vector<int64_t> last_reader_;
  Kept kept_;
  int64_t kept_bytes_ = 0;
};

}  // namespace

ForwardResult run_forward(const Plan& plan, const Arguments& arguments, const std::vector<at::Tensor>& originals,
                          const std::vector<bool>& wants_gradient) {
  return Forward(plan, arguments, originals, wants_gradient).run();
}

}  // namespace actnn::blocks
