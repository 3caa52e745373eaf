#include "actnn/nn/chain.h"

#include <ATen/autocast_mode.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <utility>

#include "src/blocks/steps/activation.h"
#include "src/blocks/steps/add.h"
#include "src/blocks/steps/attention.h"
#include "src/blocks/steps/batch_norm.h"
#include "src/blocks/steps/convolution.h"
#include "src/blocks/steps/dropout.h"
#include "src/blocks/steps/layer_norm.h"
#include "src/blocks/steps/linear.h"
#include "src/blocks/steps/max_pool.h"
#include "src/blocks/steps/multiply.h"
#include "src/blocks/steps/permute.h"
#include "src/blocks/steps/reshape.h"
#include "src/blocks/steps/split.h"

namespace actnn::nn {

using blocks::BufferIndex;
using blocks::ParameterIndex;

namespace {

/// What autocast makes of the values of a program with layer norms, as it does of layers: products are in its type,
/// layer norms in float32, everything else in that of what it reads. None without autocast; and none for a program
/// without layer norms, all of which is in autocast's type.
std::vector<at::ScalarType> autocast_dtypes(const blocks::Program& program, const std::vector<at::Tensor>& inputs) {
  const auto is_layer_norm = [](const blocks::StepPointer& step) {
    return dynamic_cast<const blocks::LayerNorm*>(step.get()) != nullptr;
  };
  if (inputs.empty() || !inputs[0].defined() || !at::autocast::is_autocast_enabled(inputs[0].device().type()) ||
      std::none_of(program.steps.begin(), program.steps.end(), is_layer_norm)) {
    return {};
  }
  const at::ScalarType lower = at::autocast::get_autocast_dtype(inputs[0].device().type());
  std::vector<at::ScalarType> dtypes;
  std::transform(inputs.begin(), inputs.end(), std::back_inserter(dtypes),
                 [](const at::Tensor& input) { return input.scalar_type(); });
  for (const blocks::StepPointer& step : program.steps) {
    at::ScalarType dtype = at::kFloat;
    if (dynamic_cast<const blocks::Linear*>(step.get()) != nullptr ||
        dynamic_cast<const blocks::Convolution*>(step.get()) != nullptr ||
        dynamic_cast<const blocks::Attention*>(step.get()) != nullptr) {
      dtype = lower;
    } else if (!is_layer_norm(step)) {
      dtype = dtypes.at(step->inputs[0].number);
      for (const Value input : step->inputs) {
        dtype = c10::promoteTypes(dtype, dtypes.at(input.number));
      }
    }
    dtypes.insert(dtypes.end(), step->output_count(), dtype);
  }
  return dtypes;
}

}  // namespace

/// The layers, and blocks of them: one for each way in which norms and dropouts train, and for the types of autocast.
struct Chain::Layers {
  using Tensors = std::vector<std::function<at::Tensor()>>;

  blocks::Program program;  ///< in training
  blocks::PlanOptions options;
  Tensors parameters;
  Tensors buffers;
  /// Steps that are something else in evaluation, and whether they train now.
  std::vector<std::pair<size_t, std::function<bool()>>> modes;
  std::mutex mutex;
  std::map<std::pair<std::vector<bool>, std::vector<at::ScalarType>>, std::shared_ptr<const blocks::Block>> blocks;
  std::shared_ptr<const blocks::Block> last;

  ParameterIndex add_parameter(std::function<at::Tensor()> tensor) {
    parameters.push_back(std::move(tensor));
    return {static_cast<int64_t>(parameters.size()) - 1};
  }
  std::optional<ParameterIndex> add_optional_parameter(std::function<at::Tensor()> tensor) {
    return tensor ? std::optional(add_parameter(std::move(tensor))) : std::nullopt;
  }
  std::optional<BufferIndex> add_buffer(std::function<at::Tensor()> tensor) {
    if (!tensor) {
      return std::nullopt;
    }
    buffers.push_back(std::move(tensor));
    return BufferIndex{static_cast<int64_t>(buffers.size()) - 1};
  }

  /// The first dimension of the first input, as an extent.
  blocks::Extent samples() {
    program.integers = 1;
    return blocks::IntegerIndex{0};
  }
  std::vector<c10::SymInt> integers(const std::vector<at::Tensor>& inputs) const {
    const bool asks = program.integers > 0 && !inputs.empty() && inputs[0].defined() && inputs[0].dim() > 0;
    return asks ? std::vector{inputs[0].sym_size(0)} : std::vector<c10::SymInt>{};
  }

  /// The block for the modes of now.
  std::shared_ptr<const blocks::Block> block(const std::vector<at::Tensor>& inputs) {
    std::vector<bool> training;
    std::transform(modes.begin(), modes.end(), std::back_inserter(training),
                   [](const auto& mode) { return mode.second(); });
    const std::vector<at::ScalarType> dtypes = autocast_dtypes(program, inputs);
    const std::lock_guard lock(mutex);
    std::shared_ptr<const blocks::Block>& known = blocks[{training, dtypes}];
    if (known == nullptr) {
      blocks::Program changed = program_in(training);
      changed.dtypes = dtypes;
      known = std::make_shared<const blocks::Block>(std::move(changed), options);
    }
    return last = known;
  }

  static std::vector<at::Tensor> all(const Tensors& tensors) {
    std::vector<at::Tensor> list;
    std::transform(tensors.begin(), tensors.end(), std::back_inserter(list),
                   [](const auto& tensor) { return tensor(); });
    return list;
  }

 private:
  blocks::Program program_in(const std::vector<bool>& training) const {
    blocks::Program changed = program;
    for (size_t mode = 0; mode < modes.size(); ++mode) {
      const std::shared_ptr<blocks::Step> step = changed.steps[modes[mode].first]->clone();
      if (auto* norm = dynamic_cast<blocks::BatchNorm*>(step.get())) {
        norm->training = training[mode];
      } else if (auto* dropout = dynamic_cast<blocks::Dropout*>(step.get()); dropout != nullptr && !training[mode]) {
        dropout->probability = 0;
      } else if (auto* attention = dynamic_cast<blocks::Attention*>(step.get());
                 attention != nullptr && !training[mode]) {
        attention->probability = 0;
      }
      changed.steps[modes[mode].first] = step;
    }
    return changed;
  }
};

at::Tensor Chain::forward(const std::vector<at::Tensor>& inputs) const {
  TORCH_CHECK(layers_, "Chain: there are no layers; ChainBuilder::build makes a chain of some");
  return layers_->block(inputs)
      ->run(inputs, Layers::all(layers_->parameters), Layers::all(layers_->buffers), layers_->integers(inputs))
      .front();
}

std::string Chain::plan() const {
  return layers_ ? blocks::to_json(blocks::make_plan(layers_->program, layers_->options)) : "{}";
}

int64_t Chain::saved_bytes() const {
  if (!layers_) {
    return 0;
  }
  const std::lock_guard lock(layers_->mutex);
  return layers_->last ? layers_->last->saved_bytes() : 0;
}

Chain::Layers& ChainBuilder::layers() const {
  TORCH_CHECK(layers_, "ChainBuilder: build has been called; another chain needs another builder");
  return *layers_;
}

ChainBuilder::ChainBuilder(int64_t inputs) : layers_(std::make_shared<Chain::Layers>()) {
  layers_->program.inputs = inputs;
}

Value ChainBuilder::add_convolution(Value input, Tensor weight, Tensor bias, ConvolutionOptions options) {
  auto step = std::make_shared<blocks::Convolution>();
  step->inputs = {input};
  step->weight = layers().add_parameter(std::move(weight));
  step->bias = layers().add_optional_parameter(std::move(bias));
  step->stride = std::move(options.stride);
  step->padding = std::move(options.padding);
  step->dilation = std::move(options.dilation);
  step->groups = options.groups;
  step->transposed = options.transposed;
  step->output_padding = std::move(options.output_padding);
  return layers().program.add(step);
}

Value ChainBuilder::add_linear(Value input, Tensor weight, Tensor bias) {
  auto step = std::make_shared<blocks::Linear>();
  step->inputs = {input};
  step->weight = layers().add_parameter(std::move(weight));
  step->bias = layers().add_optional_parameter(std::move(bias));
  return layers().program.add(step);
}

Value ChainBuilder::add_norm(Value input, NormTensors tensors, NormOptions options) {
  auto step = std::make_shared<blocks::BatchNorm>();
  step->inputs = {input};
  step->weight = layers().add_optional_parameter(std::move(tensors.weight));
  step->bias = layers().add_optional_parameter(std::move(tensors.bias));
  step->running_mean = layers().add_buffer(std::move(tensors.running_mean));
  step->running_var = layers().add_buffer(std::move(tensors.running_var));
  step->num_batches_tracked = layers().add_buffer(std::move(tensors.num_batches_tracked));
  step->momentum = options.momentum;
  step->eps = options.eps;
  step->group_name = std::move(options.group_name);
  layers().modes.emplace_back(layers().program.steps.size(), std::move(options.is_training));
  return layers().program.add(step);
}

Value ChainBuilder::add_layer_norm(Value input, Tensor weight, Tensor bias, int64_t dimensions, double eps) {
  auto step = std::make_shared<blocks::LayerNorm>();
  step->inputs = {input};
  step->weight = layers().add_optional_parameter(std::move(weight));
  step->bias = layers().add_optional_parameter(std::move(bias));
  step->dimensions = dimensions;
  step->eps = eps;
  return layers().program.add(step);
}

Value ChainBuilder::self_attention(Value input, const torch::nn::MultiheadAttention& layer, bool causal) {
  const auto& module = layer.ptr();
  const auto& options = module->options;
  TORCH_CHECK_VALUE(module->_qkv_same_embed_dim, "Chain: attention must have keys and values of ", options.embed_dim(),
                    " features, got ", options.kdim(), " and ", options.vdim());
  TORCH_CHECK_VALUE(!module->bias_k.defined() && !module->bias_v.defined() && !options.add_zero_attn(),
                    "Chain: attention must not add keys or values");
  const auto add_to_program = [&](auto step) { return layers().program.add(std::move(step)); };

  auto chunk = std::make_shared<blocks::Chunk>();
  chunk->inputs = {add_linear(
      input, [module] { return module->in_proj_weight; }, detail::tensor_of(module, module->in_proj_bias))};
  chunk->chunks = 3;
  chunk->dimension = -1;
  const Value first = add_to_program(std::move(chunk));

  /// [N, length, features] and [N, heads, length, head size].
  const auto exchanged = [&](Value value) {
    auto permute = std::make_shared<blocks::Permute>();
    permute->inputs = {value};
    permute->dimensions = {0, 2, 1, 3};
    return add_to_program(std::move(permute));
  };
  std::vector<Value> heads;
  for (int64_t part = 0; part < 3; ++part) {
    auto reshape = std::make_shared<blocks::Reshape>();
    reshape->inputs = {Value{first.number + part}};
    reshape->sizes = {layers().samples(), int64_t{-1}, options.num_heads(), options.embed_dim() / options.num_heads()};
    heads.push_back(exchanged(add_to_program(std::move(reshape))));
  }

  auto attention = std::make_shared<blocks::Attention>();
  attention->inputs = heads;
  attention->causal = causal;
  if (options.dropout() > 0) {
    attention->probability = options.dropout();
    layers().modes.emplace_back(layers().program.steps.size(), [module] { return module->is_training(); });
  }
  auto flatten = std::make_shared<blocks::Flatten>();
  flatten->inputs = {exchanged(add_to_program(std::move(attention)))};
  flatten->start = 2;
  flatten->end = 3;
  return linear(add_to_program(std::move(flatten)), module->out_proj);
}

Value ChainBuilder::activation(Value input, ActivationKind kind, double slope) {
  return layers().program.add(std::make_shared<blocks::Activation>(input, kind, slope));
}

Value ChainBuilder::add(Value first, Value second) {
  return layers().program.add(std::make_shared<blocks::Add>(first, second));
}

Value ChainBuilder::multiply(Value first, Value second) {
  auto step = std::make_shared<blocks::Multiply>();
  step->inputs = {first, second};
  return layers().program.add(step);
}

Value ChainBuilder::max_pool(Value input, const MaxPool2dWindow& window) {
  const auto list = [](const std::array<int64_t, 2>& entries) {
    return std::vector<int64_t>(entries.begin(), entries.end());
  };
  auto step = std::make_shared<blocks::MaxPool>();
  step->inputs = {input};
  step->kernel_size = list(window.kernel_size);
  step->stride = list(window.stride);
  step->padding = list(window.padding);
  step->dilation = list(window.dilation);
  step->ceil_mode = window.ceil_mode;
  return layers().program.add(step);
}

Value ChainBuilder::dropout(Value input, double probability, std::function<bool()> is_training) {
  auto step = std::make_shared<blocks::Dropout>();
  step->inputs = {input};
  step->probability = probability;
  layers().modes.emplace_back(layers().program.steps.size(), std::move(is_training));
  return layers().program.add(step);
}

Chain ChainBuilder::build(const blocks::PlanOptions& options) {
  blocks::Program& program = layers().program;
  program.results = {{program.values() - 1}};
  layers_->options = options;
  blocks::make_plan(program, options);  // for its errors
  Chain chain;
  chain.layers_ = std::move(layers_);
  return chain;
}

}  // namespace actnn::nn
