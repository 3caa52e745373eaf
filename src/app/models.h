#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <string>

#include "actnn/blocks/plan.h"

namespace actnn::app {

/// A module whose layers can run together (actnn/nn/chain.h).
class Fusible {
 public:
  Fusible() = default;
  Fusible(const Fusible&) = default;
  Fusible& operator=(const Fusible&) = default;
  virtual ~Fusible() = default;

  /// From now on forward runs the layers as one block.
  virtual void fuse(const blocks::PlanOptions& options) = 0;
  /// What the block does and keeps, as JSON.
  virtual std::string plan() const = 0;
};

/// A classifier of [N, 1, 28, 28] images into 10 classes, made of torch::nn layers in Sequential containers, with
/// in-place ReLU as usual; convolution weights are in channels_last format, so that the activations are. Initialized by
/// torch's default generator. `name`: "resnet20", "resnet18" or "mlp".
torch::nn::Sequential make_model(const std::string& name);

}  // namespace actnn::app
