#include "actnn/nn/residual_block.h"

#include <algorithm>

namespace actnn::nn {
namespace {

Conv2d make_convolution(int64_t in_channels, int64_t out_channels, int64_t kernel_size, int64_t stride, int64_t groups,
                        const Quantization& quantization) {
  Conv2dOptions options(in_channels, out_channels, kernel_size);
  options.bias(false).padding(kernel_size / 2).stride(stride).groups(groups).quantization(quantization);
  return Conv2d(options);
}

BatchNorm2d make_norm(int64_t channels, const Quantization& quantization) {
  return BatchNorm2d(BatchNorm2dOptions(channels).quantization(quantization));
}

Conv2d make_convolution(const ConvNormAct2dOptions& of) {
  Conv2dOptions options(of.in_channels(), of.out_channels(), of.kernel_size());
  options.bias(false).padding(of.padding()).stride(of.stride()).groups(of.groups()).quantization(of.quantization());
  return Conv2d(options);
}

blocks::PlanOptions plan_options(const Quantization& quantization) {
  blocks::PlanOptions plan = blocks::PlanOptions::of_bits(quantization.bits);
  plan.rounding = quantization.rounding;
  return plan;
}

Value add_layers(ChainBuilder& builder, const Conv2d& conv, const BatchNorm2d& norm,
                 const ConvNormAct2dOptions& options) {
  const Value value = builder.norm(builder.convolution(builder.input(), conv), norm);
  return options.activation() ? builder.activation(value, *options.activation(), options.negative_slope()) : value;
}

}  // namespace

// --- ConvNormAct2d, Stem ---------------------------------------------------------------------------------------------

ConvNormAct2dImpl::ConvNormAct2dImpl(const ConvNormAct2dOptions& options_) : options(options_) {
  ConvNormAct2dImpl::reset();
}

void ConvNormAct2dImpl::reset() {
  conv = register_module("conv", make_convolution(options));
  norm = register_module("norm", make_norm(options.out_channels(), options.quantization()));
  chain_ = {};
}

at::Tensor ConvNormAct2dImpl::forward(const at::Tensor& input) {
  if (!chain_) {
    ChainBuilder builder;
    add_layers(builder, conv, norm, options);
    chain_ = builder.build(plan_options(options.quantization()));
  }
  return chain_.forward(input);
}

StemImpl::StemImpl(const ConvNormAct2dOptions& options_) : options(options_) { StemImpl::reset(); }

void StemImpl::reset() {
  conv1 = register_module("conv1", make_convolution(options));
  bn1 = register_module("bn1", make_norm(options.out_channels(), options.quantization()));
  chain_ = {};
}

at::Tensor StemImpl::forward(const at::Tensor& input) {
  if (!chain_) {
    ChainBuilder builder;
    builder.max_pool(
        add_layers(builder, conv1, bn1, options),
        {.kernel_size = {3, 3}, .stride = {2, 2}, .padding = {1, 1}, .dilation = {1, 1}, .ceil_mode = false});
    chain_ = builder.build(plan_options(options.quantization()));
  }
  return chain_.forward(input);
}

// --- Residual blocks -------------------------------------------------------------------------------------------------

template <class Derived>
Conv2d ResidualBlockBase<Derived>::add_convolution(const char* name, int64_t in_channels, int64_t out_channels,
                                                   int64_t kernel_size, int64_t stride, int64_t groups) {
  return this->register_module(
      name, make_convolution(in_channels, out_channels, kernel_size, stride, groups, options.quantization()));
}

template <class Derived>
BatchNorm2d ResidualBlockBase<Derived>::add_norm(const char* name, int64_t channels) {
  return this->register_module(name, make_norm(channels, options.quantization()));
}

template <class Derived>
void ResidualBlockBase<Derived>::add_shortcut(int64_t out_channels) {
  chain_ = {};
  if (options.stride() == 1 && options.in_channels() == out_channels) {
    return;
  }
  downsample = this->register_module(
      "downsample", torch::nn::Sequential(make_convolution(options.in_channels(), out_channels, 1, options.stride(), 1,
                                                           options.quantization()),
                                          make_norm(out_channels, options.quantization())));
}

template <class Derived>
Chain ResidualBlockBase<Derived>::with_shortcut(ChainBuilder& builder, Value output) {
  Value shortcut = builder.input();
  if (downsample) {
    shortcut = builder.convolution(shortcut, Conv2d(downsample->ptr<Conv2dImpl>(0)));
    shortcut = builder.norm(shortcut, BatchNorm2d(downsample->ptr<BatchNorm2dImpl>(1)));
  }
  builder.activation(builder.add(output, shortcut), ActivationKind::kReLU);
  blocks::PlanOptions plan = plan_options(options.quantization());
  plan.output_bits = options.output_bits().value_or(plan.output_bits);
  plan.recompute = options.recompute();
  plan.norm_bits = options.norm_bits().value_or(plan.norm_bits);
  return builder.build(plan);
}

template <class Derived>
at::Tensor ResidualBlockBase<Derived>::forward(const at::Tensor& input) {
  if (!chain_) {
    chain_ = static_cast<Derived*>(this)->make_chain();
  }
  return chain_.forward(input);
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

Chain BasicBlockImpl::make_chain() {
  ChainBuilder builder;
  Value value = builder.norm(builder.convolution(builder.input(), conv1), bn1);
  value = builder.activation(value, ActivationKind::kReLU);
  return with_shortcut(builder, builder.norm(builder.convolution(value, conv2), bn2));
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

Chain BottleneckImpl::make_chain() {
  ChainBuilder builder;
  Value value = builder.norm(builder.convolution(builder.input(), conv1), bn1);
  value = builder.activation(value, ActivationKind::kReLU);
  value = builder.norm(builder.convolution(value, conv2), bn2);
  value = builder.activation(value, ActivationKind::kReLU);
  return with_shortcut(builder, builder.norm(builder.convolution(value, conv3), bn3));
}

// --- InvertedResidual ------------------------------------------------------------------------------------------------

InvertedResidualImpl::InvertedResidualImpl(const InvertedResidualOptions& options_) : options(options_) {
  InvertedResidualImpl::reset();
}

void InvertedResidualImpl::reset() {
  const int64_t hidden = options.in_channels() * options.expand_ratio();
  const Quantization& quantization = options.quantization();
  conv = register_module("conv", torch::nn::ModuleList());
  const auto expand = [&](int64_t in_channels, int64_t kernel_size, int64_t stride, int64_t groups) {
    conv->push_back(
        torch::nn::Sequential(make_convolution(in_channels, hidden, kernel_size, stride, groups, quantization),
                              make_norm(hidden, quantization)));
  };
  if (options.expand_ratio() != 1) {
    expand(options.in_channels(), 1, 1, 1);
  }
  expand(hidden, 3, options.stride(), hidden);
  conv->push_back(make_convolution(hidden, options.out_channels(), 1, 1, 1, quantization));
  conv->push_back(make_norm(options.out_channels(), quantization));
  chain_ = {};
}

Chain InvertedResidualImpl::make_chain() const {
  ChainBuilder builder;
  Value value = builder.input();
  const auto add = [&](const std::shared_ptr<Conv2dImpl>& convolution, const std::shared_ptr<BatchNorm2dImpl>& norm) {
    value = builder.norm(builder.convolution(value, Conv2d(convolution)), BatchNorm2d(norm));
  };
  const size_t projection = conv->size() - 2;
  for (size_t number = 0; number < projection; ++number) {
    const auto layers = conv->ptr<torch::nn::SequentialImpl>(number);
    add(layers->ptr<Conv2dImpl>(0), layers->ptr<BatchNorm2dImpl>(1));
    value = builder.activation(value, options.activation());
  }
  add(conv->ptr<Conv2dImpl>(projection), conv->ptr<BatchNorm2dImpl>(projection + 1));
  if (options.stride() == 1 && options.in_channels() == options.out_channels()) {
    builder.add(builder.input(), value);
  }
  return builder.build(plan_options(options.quantization()));
}

at::Tensor InvertedResidualImpl::forward(const at::Tensor& input) {
  if (!chain_) {
    chain_ = make_chain();
  }
  return chain_.forward(input);
}

}  // namespace actnn::nn
