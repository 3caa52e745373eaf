#include "actnn/nn/activation.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/relu6.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tanh.h>
#include <torch/nn/init.h>

#include "actnn/autograd/activation.h"
#include "actnn/autograd/relu.h"
#include "actnn/core/activation.h"
#include "src/nn/parameters.h"
#include "src/nn/quantized_activation.h"

namespace actnn::nn {

ReLUImpl::ReLUImpl(const TorchLayer& source) : options(source.options) { train(source.is_training()); }

at::Tensor ReLUImpl::forward(at::Tensor input) {
  if (!is_compressible(input.scalar_type())) {
    return options.inplace() ? at::relu_(input) : at::relu(input);
  }
  return options.inplace() ? actnn::relu_(input) : actnn::relu(input);
}

void ReLUImpl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::ReLU(" << (options.inplace() ? "inplace=true" : "") << ')';
}

namespace {

const char* in_place_option(bool inplace) { return inplace ? ", inplace=true" : ""; }

}  // namespace

at::Tensor LeakyReLUImpl::forward(at::Tensor input) {
  const double slope = options.negative_slope();
  if (!is_compressible(input.scalar_type())) {
    return options.inplace() ? at::leaky_relu_(input, slope) : at::leaky_relu(input, slope);
  }
  return options.inplace() ? actnn::leaky_relu_(input, slope) : actnn::leaky_relu(input, slope);
}

at::Tensor HardtanhImpl::forward(at::Tensor input) {
  const double least = options.min_val();
  const double most = options.max_val();
  if (!is_compressible(input.scalar_type())) {
    return options.inplace() ? at::hardtanh_(input, least, most) : at::hardtanh(input, least, most);
  }
  return options.inplace() ? actnn::hardtanh_(input, least, most) : actnn::hardtanh(input, least, most);
}

at::Tensor ReLU6Impl::forward(at::Tensor input) {
  if (!is_compressible(input.scalar_type())) {
    return options.inplace() ? at::relu6_(input) : at::relu6(input);
  }
  return options.inplace() ? actnn::hardtanh_(input, 0, 6) : actnn::hardtanh(input, 0, 6);
}

at::Tensor GELUImpl::forward(const at::Tensor& input) {
  return is_compressible(input.scalar_type()) ? actnn::gelu(input, options.approximate(), options.quantization())
                                              : at::gelu(input, options.approximate());
}

at::Tensor SiLUImpl::forward(const at::Tensor& input) {
  return is_compressible(input.scalar_type()) ? actnn::silu(input, options.quantization()) : at::silu(input);
}

at::Tensor SigmoidImpl::forward(const at::Tensor& input) {
  return is_compressible(input.scalar_type()) ? actnn::sigmoid(input, options.quantization()) : at::sigmoid(input);
}

at::Tensor TanhImpl::forward(const at::Tensor& input) {
  return is_compressible(input.scalar_type()) ? actnn::tanh(input, options.quantization()) : at::tanh(input);
}

PReLUImpl::PReLUImpl(const PReLUOptions& options_) : options(options_) { PReLUImpl::reset(); }

PReLUImpl::PReLUImpl(const TorchLayer& source, const Quantization& quantization)
    : options(source.options), weight(source.weight) {
  check_quantization("actnn::nn::PReLU", quantization);
  options.quantization(quantization);
  adopt_parameters(*this, source, {"weight"});
  train(source.is_training());
}

void PReLUImpl::reset() {
  check_quantization("actnn::nn::PReLU", options.quantization());
  weight = register_parameter("weight", at::empty({options.num_parameters()}));
  torch::nn::init::constant_(weight, options.init());
}

at::Tensor PReLUImpl::forward(const at::Tensor& input) {
  return is_compressible(input.scalar_type()) ? actnn::prelu(input, weight, options.quantization())
                                              : at::prelu(input, weight);
}

void LeakyReLUImpl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::LeakyReLU(negative_slope=" << options.negative_slope() << in_place_option(options.inplace())
         << ')';
}

void HardtanhImpl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::Hardtanh(min_val=" << options.min_val() << ", max_val=" << options.max_val()
         << in_place_option(options.inplace()) << ')';
}

void ReLU6Impl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::ReLU6(" << (options.inplace() ? "inplace=true" : "") << ')';
}

void GELUImpl::pretty_print(std::ostream& stream) const {
  stream << kName << "(approximate=" << options.approximate() << ", bits=" << smooth_copy_bits(options.bits()) << ')';
}

void SiLUImpl::pretty_print(std::ostream& stream) const {
  stream << kName << "(bits=" << smooth_copy_bits(options.bits()) << ')';
}
void SigmoidImpl::pretty_print(std::ostream& stream) const { stream << kName << "(bits=" << options.bits() << ')'; }
void TanhImpl::pretty_print(std::ostream& stream) const { stream << kName << "(bits=" << options.bits() << ')'; }

void PReLUImpl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::PReLU(num_parameters=" << options.num_parameters() << ", bits=" << options.bits() << ')';
}

template class detail::QuantizedActivationImpl<GELUOptions, GELUImpl, torch::nn::GELUImpl>;
template class detail::QuantizedActivationImpl<SiLUOptions, SiLUImpl, torch::nn::SiLUImpl>;
template class detail::QuantizedActivationImpl<SigmoidOptions, SigmoidImpl, torch::nn::SigmoidImpl>;
template class detail::QuantizedActivationImpl<TanhOptions, TanhImpl, torch::nn::TanhImpl>;

}  // namespace actnn::nn
