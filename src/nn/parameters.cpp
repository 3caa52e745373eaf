#include "src/nn/parameters.h"

#include <torch/nn/init.h>

#include <cmath>

namespace actnn::nn {

void check_quantization(const std::string& layer, const Quantization& quantization) {
  check_bits(layer.c_str(), quantization.bits);
  check_group_size(layer.c_str(), quantization.group_size);
}

void initialize_parameters(const at::Tensor& weight, const at::Tensor& bias) {
  torch::nn::init::kaiming_uniform_(weight, std::sqrt(5));
  if (bias.defined()) {
    const auto fan_in = std::get<0>(torch::nn::init::_calculate_fan_in_and_fan_out(weight));
    const double bound = 1 / std::sqrt(fan_in);
    torch::nn::init::uniform_(bias, -bound, bound);
  }
}

void adopt_parameters(torch::nn::Module& target, const torch::nn::Module& source,
                      std::initializer_list<const char*> names) {
  const auto parameters = source.named_parameters(/*recurse=*/false);
  for (const char* name : names) {
    const at::Tensor* tensor = parameters.find(name);
    target.register_parameter(name, tensor ? *tensor : at::Tensor(), tensor && tensor->requires_grad());
  }
}

void adopt_buffers(torch::nn::Module& target, const torch::nn::Module& source,
                   std::initializer_list<const char*> names) {
  const auto buffers = source.named_buffers(/*recurse=*/false);
  for (const char* name : names) {
    const at::Tensor* tensor = buffers.find(name);
    target.register_buffer(name, tensor ? *tensor : at::Tensor());
  }
}

}  // namespace actnn::nn
