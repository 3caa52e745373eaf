#include "actnn/nn/chain.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace actnn::nn {

std::vector<at::Tensor> Chain::all(const Tensors& tensors) {
  std::vector<at::Tensor> list;
  std::transform(tensors.begin(), tensors.end(), std::back_inserter(list), [](const auto& tensor) { return tensor(); });
  return list;
}

at::Tensor Chain::forward(const std::vector<at::Tensor>& inputs) const {
  TORCH_CHECK(block_, "Chain: there are no layers; ChainBuilder::build makes a chain of some");
  std::vector<bool> batch_statistics;
  std::transform(batch_statistics_.begin(), batch_statistics_.end(), std::back_inserter(batch_statistics),
                 [](const auto& norm) { return norm(); });
  return block_->run(inputs, all(parameters_), all(buffers_), batch_statistics);
}

std::string Chain::plan() const { return block_ ? blocks::to_json(block_->plan()) : "[]"; }

ChainBuilder::ChainBuilder(int64_t inputs) { program_.inputs = inputs; }

Value ChainBuilder::activation(Value input, ActivationKind kind, double slope) {
  return program_.add(blocks::Activation{input, kind, slope});
}

Value ChainBuilder::add(Value first, Value second) { return program_.add(blocks::Add{first, second}); }

Value ChainBuilder::max_pool(Value input, const MaxPool2dWindow& window) {
  return program_.add(blocks::MaxPool{input, window});
}

Chain ChainBuilder::build(const blocks::PlanOptions& options) {
  chain_.block_ = std::make_shared<const blocks::Block>(std::move(program_), options);
  return std::move(chain_);
}

blocks::Index ChainBuilder::add_parameter(std::function<at::Tensor()> tensor) {
  chain_.parameters_.push_back(std::move(tensor));
  return static_cast<blocks::Index>(chain_.parameters_.size()) - 1;
}

blocks::Index ChainBuilder::add_buffer(std::function<at::Tensor()> tensor) {
  chain_.buffers_.push_back(std::move(tensor));
  return static_cast<blocks::Index>(chain_.buffers_.size()) - 1;
}

}  // namespace actnn::nn
