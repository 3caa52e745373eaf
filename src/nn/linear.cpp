#include "actnn/nn/linear.h"

#include <ATen/ops/empty.h>

#include <optional>

#include "actnn/autograd/linear.h"
#include "src/nn/parameters.h"

namespace actnn::nn {

LinearImpl::LinearImpl(const LinearOptions& options_) : options(options_) { LinearImpl::reset(); }

LinearImpl::LinearImpl(const TorchLayer& source, const Quantization& quantization)
    : options(source.options), weight(source.weight), bias(source.bias) {
  check_quantization("actnn::nn::Linear", quantization);
  options.quantization(quantization);
  adopt_parameters(*this, source, {"weight", "bias"});
  train(source.is_training());
}

at::Tensor LinearImpl::forward(const at::Tensor& input) {
  if (input.dim() == 2 || !bias.defined()) {
    return actnn::linear(input, weight, if_defined(bias), options.quantization());
  }
  // Torch's C++ layer adds the bias to the rounded product, which shows in 16-bit types.
  return actnn::linear(input, weight, std::nullopt, options.quantization()).add_(bias);
}

void LinearImpl::reset() {
  check_quantization("actnn::nn::Linear", options.quantization());
  weight = register_parameter("weight", at::empty({options.out_features(), options.in_features()}));
  bias = options.bias() ? register_parameter("bias", at::empty({options.out_features()}))
                        : register_parameter("bias", {}, /*requires_grad=*/false);
  reset_parameters();
}

void LinearImpl::reset_parameters() { initialize_parameters(weight, bias); }

void LinearImpl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::Linear(in_features=" << options.in_features() << ", out_features=" << options.out_features()
         << ", bias=" << (options.bias() ? "true" : "false") << ", bits=" << options.bits() << ')';
}

}  // namespace actnn::nn
