#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/modules/container/sequential.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "actnn/blocks/plan.h"
#include "src/app/dataset.h"

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
  virtual std::string plan() = 0;
};

/// What a model makes of a batch.
struct Prediction {
  at::Tensor loss;     ///< cross entropy, the mean over all labels
  at::Tensor correct;  ///< how many labels it finds; undefined where nobody counts
};

/// Layers, and how they learn.
class Model {
 public:
  explicit Model(torch::nn::Sequential layers_) : layers(std::move(layers_)) {}
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  virtual ~Model() = default;

  virtual Prediction predict(const Batch& batch) = 0;

  /// The path of a layer that the model reads itself, so that it must stay as it is; empty: none.
  virtual std::string own_layer() const { return ""; }

  torch::nn::Sequential layers;  ///< all parameters
  bool compressed = false;       ///< the loss saves less, too
};

/// A model of so many classes, initialized by torch's default generator.
///
/// "resnet20", "resnet18" or "mlp": a classifier of [N, 1, 28, 28] images, made of torch::nn layers in Sequential
/// containers, with in-place ReLU as usual; convolution weights are in channels_last format, so that the activations
/// are.
///
/// "gpt": a transformer that predicts the next character of a text (Radford et al., 2019, section 2.3): embeddings of
/// characters and positions, 4 layers of 128 features and 4 heads, a norm, a linear layer. Without dropout, since a
/// model of this size hardly learns a text by heart in a few epochs.
std::unique_ptr<Model> make_model(const std::string& name, int64_t classes);

}  // namespace actnn::app
