#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <string>

namespace actnn::app {

/// A classifier of [N, 1, 28, 28] images into 10 classes, made of torch::nn layers in Sequential containers, with
/// in-place ReLU as usual; convolution weights are in channels_last format, so that the activations are. Initialized by
/// torch's default generator. `name`: "resnet20", "resnet18" or "mlp".
torch::nn::Sequential make_model(const std::string& name);

}  // namespace actnn::app
