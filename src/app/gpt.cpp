#include "src/app/gpt.h"

#include <ATen/ops/cross_entropy_loss.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include "actnn/autograd/linear_cross_entropy.h"
#include "actnn/nn/transformer.h"
#include "src/app/text_data.h"

namespace actnn::app {
namespace {

namespace nn = torch::nn;

constexpr int64_t kLayers = 4;
constexpr int64_t kHidden = 128;
constexpr int64_t kHeads = 4;
/// Half of torch's, so that what the layers add counts from the start: the text is learned faster so.
constexpr double kEmbeddingDeviation = 0.5;

/// The sum of what stands for a character and what stands for its position.
class EmbeddingsImpl : public nn::Module {
 public:
  explicit EmbeddingsImpl(int64_t characters)
      : characters_(register_module("characters", nn::Embedding(characters, kHidden))),
        positions_(register_module("positions", nn::Embedding(TextData::kContext, kHidden))) {
    nn::init::normal_(characters_->weight, 0, kEmbeddingDeviation);
    nn::init::normal_(positions_->weight, 0, kEmbeddingDeviation);
  }

  at::Tensor forward(const at::Tensor& characters) {
    return characters_->forward(characters) + positions_->weight.slice(0, 0, characters.size(1));
  }

 private:
  nn::Embedding characters_;
  nn::Embedding positions_;
};
TORCH_MODULE(Embeddings);

/// Torch's layers until it is told otherwise.
class LayerImpl : public actnn::nn::TransformerLayerImpl, public Fusible {
 public:
  LayerImpl()
      : TransformerLayerImpl(actnn::nn::TransformerLayerOptions(kHidden, kHeads).causal(true).compressed(false)) {}

  void fuse(const blocks::PlanOptions& plan_options) override { options.bits(plan_options.bits).compressed(true); }
  std::string plan() override { return TransformerLayerImpl::plan(); }
};
TORCH_MODULE(Layer);

/// All but the head.
class TransformerImpl : public nn::Module {
 public:
  explicit TransformerImpl(int64_t characters) : layers_(register_module("layers", nn::Sequential())) {
    layers_->push_back(Embeddings(characters));
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      layers_->push_back(Layer());
    }
    layers_->push_back(nn::LayerNorm(nn::LayerNormOptions({kHidden})));
  }

  at::Tensor forward(const at::Tensor& characters) { return layers_->forward(characters); }

 private:
  nn::Sequential layers_;
};
TORCH_MODULE(Transformer);

class Gpt : public Model {
 public:
  using Model::Model;

  Prediction predict(const Batch& batch) override {
    const at::Tensor hidden = layers->ptr<TransformerImpl>(0)->forward(batch.inputs);
    const auto head = layers->ptr<nn::LinearImpl>(1);
    if (compressed) {
      return {.loss = linear_cross_entropy(hidden, head->weight, batch.labels, head->bias), .correct = {}};
    }
    const at::Tensor logits = head->forward(hidden).flatten(0, 1);
    return {.loss = at::cross_entropy_loss(logits.to(at::kFloat), batch.labels.flatten()), .correct = {}};
  }

  std::string own_layer() const override { return "head"; }
};

}  // namespace

std::unique_ptr<Model> make_gpt(int64_t characters) {
  nn::Sequential layers;
  layers->push_back("transformer", Transformer(characters));
  layers->push_back("head", nn::Linear(kHidden, characters));
  return std::make_unique<Gpt>(layers);
}

}  // namespace actnn::app
