// Trains a small convolutional net for three steps with the installed library and checks what a user would notice: the
// loss falls, and a step keeps fewer bytes for backward than torch's layers do.

#include <actnn/actnn.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>

namespace {

torch::nn::Sequential make_net() {
  using namespace torch::nn;
  return Sequential(Conv2d(Conv2dOptions(3, 16, 3).padding(1)), BatchNorm2d(16), ReLU(), MaxPool2d(2),
                    Conv2d(Conv2dOptions(16, 32, 3).padding(1)), BatchNorm2d(32), ReLU(), AdaptiveAvgPool2d(1),
                    Flatten(), Linear(32, 4));
}

struct Batch {
  at::Tensor images;
  at::Tensor labels;
};

/// Four classes that differ in which quarter of the image is bright.
Batch make_batch() {
  const at::Tensor labels = at::arange(32).remainder(4);
  at::Tensor images = at::randn({32, 3, 32, 32}) * 0.5;
  for (int64_t i = 0; i < labels.size(0); ++i) {
    const int64_t label = labels[i].item<int64_t>();
    images[i].narrow(1, label / 2 * 16, 16).narrow(2, label % 2 * 16, 16) += 1;
  }
  return {images, labels};
}

at::Tensor loss_of(torch::nn::Sequential& net, const Batch& batch) {
  return torch::nn::functional::cross_entropy(net->forward(batch.images), batch.labels);
}

/// Bytes alive between forward and backward.
int64_t saved_bytes(torch::nn::Sequential net, const Batch& batch) {
  const actnn::AllocationObserver observer;
  const at::Tensor loss = loss_of(net, batch);
  return observer.live_bytes();
}

}  // namespace

int main() {
  at::manual_seed(0);
  torch::nn::Sequential net = make_net();
  const Batch batch = make_batch();
  const int64_t exact = saved_bytes(net, batch);
  std::cout << actnn::nn::convert(net, {.quantization = {.bits = 4}});
  const int64_t compressed = saved_bytes(net, batch);
  std::cout << "saved for backward: " << exact << " bytes, compressed " << compressed << " bytes\n";

  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.2).momentum(0.9));
  double first = 0;
  double last = 0;
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    const at::Tensor loss = loss_of(net, batch);
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    first = step == 0 ? last : first;
    std::cout << "step " << step << ": loss " << last << '\n';
  }
  if (!std::isfinite(last) || last >= first) {
    std::cerr << "the loss did not fall: " << first << " to " << last << '\n';
    return EXIT_FAILURE;
  }
  if (compressed * 3 > exact) {
    std::cerr << "activations were not compressed: " << exact << " bytes, then " << compressed << '\n';
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
