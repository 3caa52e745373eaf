#include "actnn/nn/residual_block.h"

#include <string>

#include "actnn/autograd/add_act.h"

namespace actnn::nn {
namespace {

constexpr double kReLU = 0.0;
constexpr double kNoActivation = 1.0;

Conv2dOptions convolution_options(int64_t in_channels, int64_t out_channels, int64_t kernel_size,
                                  const Quantization& quantization) {
  Conv2dOptions options(in_channels, out_channels, kernel_size);
  options.bias(false).padding(kernel_size / 2).quantization(quantization);
  return options;
}

BatchNorm2d make_norm(int64_t channels, const Quantization& quantization) {
  return BatchNorm2d(BatchNorm2dOptions(channels).quantization(quantization));
}

/// How what is added, and the sum, is packed.
SplitPacking packing(const Quantization& quantization, int64_t bits) {
  return {.bits = bits, .stochastic = quantization.stochastic};
}

}  // namespace

// --- ConvNormAct2d ---------------------------------------------------------------------------------------------------

ConvNormAct2dImpl::ConvNormAct2dImpl(const ConvNormAct2dOptions& options_) : options(options_) {
  ConvNormAct2dImpl::reset();
}

void ConvNormAct2dImpl::reset() {
  Conv2dOptions convolution =
      convolution_options(options.in_channels(), options.out_channels(), options.kernel_size(), options.quantization());
  convolution.stride(options.stride()).padding(options.padding()).groups(options.groups());
  conv = register_module("conv", Conv2d(convolution));
  norm = register_module("norm", make_norm(options.out_channels(), options.quantization()));
}

at::Tensor ConvNormAct2dImpl::forward(const at::Tensor& input) {
  return norm->forward_with_activation(conv->forward(input), options.negative_slope());
}

// --- Residual blocks -------------------------------------------------------------------------------------------------

template <class Derived>
Conv2d ResidualBlockBase<Derived>::add_convolution(const char* name, int64_t in_channels, int64_t out_channels,
                                                   int64_t kernel_size, int64_t stride, int64_t groups) {
  Conv2dOptions convolution = convolution_options(in_channels, out_channels, kernel_size, options.quantization());
  return this->register_module(name, Conv2d(convolution.stride(stride).groups(groups)));
}

template <class Derived>
BatchNorm2d ResidualBlockBase<Derived>::add_norm(const char* name, int64_t channels) {
  return this->register_module(name, make_norm(channels, options.quantization()));
}

template <class Derived>
void ResidualBlockBase<Derived>::add_shortcut(int64_t out_channels) {
  if (options.stride() == 1 && options.in_channels() == out_channels) {
    return;
  }
  Conv2dOptions convolution = convolution_options(options.in_channels(), out_channels, 1, options.quantization());
  downsample =
      this->register_module("downsample", torch::nn::Sequential(Conv2d(convolution.stride(options.stride())),
                                                                make_norm(out_channels, options.quantization())));
}

template <class Derived>
at::Tensor ResidualBlockBase<Derived>::add_and_activate(const at::Tensor& output, const at::Tensor& input) {
  const SplitPacking of_output = packing(options.quantization(), options.output_bits());
  at::Tensor shortcut = input;
  if (downsample) {
    const at::Tensor convolved = downsample->ptr<Conv2dImpl>(0)->forward(input);
    shortcut = downsample->ptr<BatchNorm2dImpl>(1)->forward_with_activation(convolved, kNoActivation, of_output.bits);
  }
  return add_act(output, shortcut, kReLU, of_output);
}

template class ResidualBlockBase<BasicBlockImpl>;
template class ResidualBlockBase<BottleneckImpl>;

BasicBlockImpl::BasicBlockImpl(const ResidualBlockOptions& options_) : ResidualBlockBase(options_) {
  BasicBlockImpl::reset();
}

void BasicBlockImpl::reset() {
  const int64_t channels = options.channels();
  const int64_t out_channels = options.out_channels() == 0 ? channels : options.out_channels();
  conv1 = add_convolution("conv1", options.in_channels(), channels, 3, options.stride(), 1);
  bn1 = add_norm("bn1", channels);
  conv2 = add_convolution("conv2", channels, out_channels, 3, 1, 1);
  bn2 = add_norm("bn2", out_channels);
  add_shortcut(out_channels);
}

at::Tensor BasicBlockImpl::forward(const at::Tensor& input) {
  at::Tensor output = bn1->forward_with_activation(conv1->forward(input), kReLU);
  output = bn2->forward_with_activation(conv2->forward(output), kNoActivation, options.output_bits());
  return add_and_activate(output, input);
}

BottleneckImpl::BottleneckImpl(const ResidualBlockOptions& options_) : ResidualBlockBase(options_) {
  BottleneckImpl::reset();
}

void BottleneckImpl::reset() {
  const int64_t channels = options.channels();
  const int64_t out_channels = options.out_channels() == 0 ? 4 * channels : options.out_channels();
  conv1 = add_convolution("conv1", options.in_channels(), channels, 1, 1, 1);
  bn1 = add_norm("bn1", channels);
  conv2 = add_convolution("conv2", channels, channels, 3, options.stride(), options.groups());
  bn2 = add_norm("bn2", channels);
  conv3 = add_convolution("conv3", channels, out_channels, 1, 1, 1);
  bn3 = add_norm("bn3", out_channels);
  add_shortcut(out_channels);
}

at::Tensor BottleneckImpl::forward(const at::Tensor& input) {
  at::Tensor output = bn1->forward_with_activation(conv1->forward(input), kReLU);
  output = bn2->forward_with_activation(conv2->forward(output), kReLU);
  output = bn3->forward_with_activation(conv3->forward(output), kNoActivation, options.output_bits());
  return add_and_activate(output, input);
}

}  // namespace actnn::nn
