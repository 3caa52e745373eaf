#include "actnn/nn/linear.h"

#include <ATen/ops/empty.h>

#include <optional>

#include "actnn/autograd/linear.h"
#include "src/nn/parameters.h"
#include "src/nn/planned.h"

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
  // Torch's C++ layer adds the bias to the rounded product unless the input is 2-D, which shows in 16-bit types.
  const bool fused = input.dim() == 2 || !bias.defined();
  at::Tensor product =
      planned(*this, input, weight.requires_grad(), [&](const Quantization& quantization, const Retention& retention) {
        return actnn::linear(input, weight, fused ? if_defined(bias) : std::nullopt, quantization, std::nullopt,
                             retention);
      });
  return fused ? product : product.add_(bias);
}

void LinearImpl::reset() {
  check_quantization("actnn::nn::Linear", options.quantization());
  weight = register_parameter("weight", at::empty({options.out_features(), options.in_features()}));
  bias = options.bias() ? register_parameter("bias", at::empty({options.out_features()}))
                        : register_parameter("bias", {}, /*requires_grad=*/false);
  reset_parameters();
}

void LinearImpl::reset_parameters() { initialize_parameters(weight, bias); }

void LinearImpl::save(torch::serialize::OutputArchive& archive) const {
  torch::nn::Module::save(archive);
  save_scheme(archive, *this);
}

void LinearImpl::load(torch::serialize::InputArchive& archive) {
  torch::nn::Module::load(archive);
  load_scheme(archive, *this);
}

void LinearImpl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::Linear(in_features=" << options.in_features() << ", out_features=" << options.out_features()
         << ", bias=" << (options.bias() ? "true" : "false") << ", bits=" << options.bits() << ')';
}

}  // namespace actnn::nn
