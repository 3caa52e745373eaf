#include "actnn/nn/chain.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <utility>

#include "src/blocks/steps/activation.h"
#include "src/blocks/steps/add.h"
#include "src/blocks/steps/batch_norm.h"
#include "src/blocks/steps/convolution.h"
#include "src/blocks/steps/dropout.h"
#include "src/blocks/steps/layer_norm.h"
#include "src/blocks/steps/linear.h"
#include "src/blocks/steps/max_pool.h"

namespace actnn::nn {

using blocks::BufferIndex;
using blocks::ParameterIndex;

/// The layers, and blocks of them: one for each way in which norms and dropouts train.
struct Chain::Layers {
  using Tensors = std::vector<std::function<at::Tensor()>>;

  blocks::Program program;  ///< in training
  blocks::PlanOptions options;
  Tensors parameters;
  Tensors buffers;
  /// Steps that are something else in evaluation, and whether they train now.
  std::vector<std::pair<size_t, std::function<bool()>>> modes;
  std::mutex mutex;
  std::map<std::vector<bool>, std::shared_ptr<const blocks::Block>> blocks;
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

  /// The block for the modes of now.
  std::shared_ptr<const blocks::Block> block() {
    std::vector<bool> training;
    std::transform(modes.begin(), modes.end(), std::back_inserter(training),
                   [](const auto& mode) { return mode.second(); });
    const std::lock_guard lock(mutex);
    std::shared_ptr<const blocks::Block>& known = blocks[training];
    if (known == nullptr) {
      known = std::make_shared<const blocks::Block>(program_in(training), options);
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
      }
      changed.steps[modes[mode].first] = step;
    }
    return changed;
  }
};

at::Tensor Chain::forward(const std::vector<at::Tensor>& inputs) const {
  TORCH_CHECK(layers_, "Chain: there are no layers; ChainBuilder::build makes a chain of some");
  return layers_->block()->run(inputs, Layers::all(layers_->parameters), Layers::all(layers_->buffers)).front();
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

Value ChainBuilder::activation(Value input, ActivationKind kind, double slope) {
  return layers().program.add(std::make_shared<blocks::Activation>(input, kind, slope));
}

Value ChainBuilder::add(Value first, Value second) {
  return layers().program.add(std::make_shared<blocks::Add>(first, second));
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
