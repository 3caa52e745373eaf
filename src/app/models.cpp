#include "src/app/models.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty_like.h>
#include <fmt/core.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>
#include <torch/nn/pimpl.h>

#include <stdexcept>
#include <utility>
#include <vector>

#include "actnn/nn/chain.h"
#include "src/app/gpt.h"

namespace actnn::app {
namespace {

namespace nn = torch::nn;

nn::Conv2d conv(int64_t in, int64_t out, int64_t kernel, int64_t stride) {
  return nn::Conv2d(nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
}

nn::ReLU relu() { return nn::ReLU(nn::ReLUOptions().inplace(true)); }

/// The basic block of ResNet (He et al., CVPR 2016): two 3x3 convolutions, and a shortcut that is a 1x1 convolution
/// where the shape changes.
class ResidualBlockImpl : public nn::Module, public Fusible {
 public:
  ResidualBlockImpl(int64_t in, int64_t out, int64_t stride) {
    body_ = register_module("body", nn::Sequential(conv(in, out, 3, stride), nn::BatchNorm2d(out), relu(),
                                                   conv(out, out, 3, 1), nn::BatchNorm2d(out)));
    if (in != out || stride != 1) {
      shortcut_ = register_module("shortcut", nn::Sequential(conv(in, out, 1, stride), nn::BatchNorm2d(out)));
    }
    activation_ = register_module("activation", nn::Sequential(relu()));
  }

  at::Tensor forward(const at::Tensor& input) {
    if (chain_) {
      return chain_.forward(input);
    }
    at::Tensor output = body_->forward(input);
    output += shortcut_.is_empty() ? input : shortcut_->forward(input);
    return activation_->forward(output);
  }

  void fuse(const blocks::PlanOptions& options) override {
    using actnn::ActivationKind;
    actnn::nn::ChainBuilder builder;
    actnn::nn::Value output = add_layers(builder, builder.input(), *body_, 0);
    output = add_layers(builder, builder.activation(output, ActivationKind::kReLU), *body_, 3);
    const actnn::nn::Value shortcut =
        shortcut_.is_empty() ? builder.input() : add_layers(builder, builder.input(), *shortcut_, 0);
    builder.activation(builder.add(output, shortcut), ActivationKind::kReLU);
    chain_ = builder.build(options);
  }
  std::string plan() override { return chain_.plan(); }

 private:
  /// The convolution at `first` and the norm after it.
  static actnn::nn::Value add_layers(actnn::nn::ChainBuilder& builder, actnn::nn::Value input,
                                     const nn::SequentialImpl& layers, size_t first) {
    return builder.norm(builder.convolution(input, layer<nn::Conv2d>(layers, first)),
                        layer<nn::BatchNorm2d>(layers, first + 1));
  }

  template <class Layer>
  static Layer layer(const nn::SequentialImpl& layers, size_t number) {
    return Layer(std::dynamic_pointer_cast<typename Layer::ContainedType>(layers.ptr(number)));
  }

  nn::Sequential body_{nullptr};
  nn::Sequential shortcut_{nullptr};
  nn::Sequential activation_{nullptr};
  actnn::nn::Chain chain_;
};
TORCH_MODULE(ResidualBlock);

nn::Sequential make_resnet(const std::vector<int64_t>& widths, int64_t blocks_per_stage, int64_t classes) {
  nn::Sequential model(conv(1, widths.front(), 3, 1), nn::BatchNorm2d(widths.front()), relu());
  int64_t width = widths.front();
  for (const int64_t next : widths) {
    for (int64_t block = 0; block < blocks_per_stage; ++block) {
      const bool first_of_a_later_stage = block == 0 && next != widths.front();
      model->push_back(ResidualBlock(width, next, first_of_a_later_stage ? 2 : 1));
      width = next;
    }
  }
  model->push_back(nn::AdaptiveAvgPool2d(nn::AdaptiveAvgPool2dOptions(1)));
  model->push_back(nn::Flatten());
  model->push_back(nn::Linear(width, classes));
  return model;
}

nn::Sequential make_mlp(int64_t classes) {
  return nn::Sequential(nn::Flatten(), nn::Linear(28 * 28, 512), relu(), nn::Dropout(0.2), nn::Linear(512, 512), relu(),
                        nn::Dropout(0.2), nn::Linear(512, classes));
}

class Classifier : public Model {
 public:
  using Model::Model;

  Prediction predict(const Batch& batch) override {
    const at::Tensor logits = layers->forward(batch.inputs);
    return {.loss = at::cross_entropy_loss(logits.to(at::kFloat), batch.labels),
            .correct = logits.detach().argmax(1).eq(batch.labels).sum()};
  }
};

void use_channels_last(nn::Module& model) {
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : model.parameters()) {
    if (parameter.dim() == 4) {
      // Not contiguous(): it would find the stem's weight, with its single input channel, to be in both formats.
      parameter.set_data(at::empty_like(parameter, {}, at::MemoryFormat::ChannelsLast).copy_(parameter));
    }
  }
}

}  // namespace

std::unique_ptr<Model> make_model(const std::string& name, int64_t classes) {
  if (name == "gpt") {
    return make_gpt(classes);
  }
  nn::Sequential layers{nullptr};
  if (name == "resnet20") {
    layers = make_resnet({16, 32, 64}, 3, classes);
  } else if (name == "resnet18") {
    layers = make_resnet({64, 128, 256, 512}, 2, classes);
  } else if (name == "mlp") {
    layers = make_mlp(classes);
  } else {
    throw std::invalid_argument(fmt::format("there is no model \"{}\"", name));
  }
  use_channels_last(*layers);
  return std::make_unique<Classifier>(std::move(layers));
}

}  // namespace actnn::app
