#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "src/app/settings.h"

namespace actnn::app {

/// How a model's parameters learn: images by SGD with Nesterov's momentum 0.9 and weight decay 5e-4, texts by AdamW
/// with weight decay 0.1 and 0.99 for the second moment.
class Optimizer {
 public:
  /// `find(name, like)`: a tensor of a saved state, with the shape and type of the other one.
  using Find = std::function<const at::Tensor&(const std::string& name, const at::Tensor& like)>;

  Optimizer(const Settings& settings, torch::nn::Module& model);

  /// Changes the parameters, and forgets their gradients.
  void step(double learning_rate);

  /// What it remembers of each parameter that has learned, e.g. "momentum.0.weight".
  std::map<std::string, at::Tensor> state() const;
  /// Takes over what `state` gave after so many steps.
  void load_state(int64_t steps, const Find& find);

 private:
  torch::nn::Module& model_;
  bool is_adam_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

}  // namespace actnn::app
