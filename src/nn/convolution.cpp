#include "actnn/nn/convolution.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>
#include <vector>

#include "actnn/autograd/convolution.h"
#include "src/nn/padding.h"
#include "src/nn/parameters.h"
#include "src/nn/planned.h"

namespace actnn::nn {
namespace {

template <size_t D>
std::vector<int64_t> to_vector(const torch::ExpandingArray<D>& array) {
  return {array->begin(), array->end()};
}

template <size_t D, bool transposed>
std::string convolution_name() {
  return std::string("actnn::nn::Conv") + (transposed ? "Transpose" : "") + std::to_string(D) + "d";
}

/// Padding before and after each spatial dimension.
struct Padding {
  std::vector<int64_t> before;
  std::vector<int64_t> after;

  /// In the order that `at::pad` wants: last dimension first.
  std::vector<int64_t> reversed() const {
    std::vector<int64_t> amounts;
    for (size_t i = before.size(); i-- > 0;) {
      amounts.insert(amounts.end(), {before[i], after[i]});
    }
    return amounts;
  }

  /// First dimension first.
  std::vector<int64_t> in_order() const {
    std::vector<int64_t> amounts;
    for (size_t i = 0; i < before.size(); ++i) {
      amounts.insert(amounts.end(), {before[i], after[i]});
    }
    return amounts;
  }
};

template <size_t D>
Padding padding_of(const ConvOptions<D>& options) {
  if (const auto* amounts = std::get_if<torch::ExpandingArray<D>>(&options.padding())) {
    return {to_vector(*amounts), to_vector(*amounts)};
  }
  Padding padding{std::vector<int64_t>(D, 0), std::vector<int64_t>(D, 0)};
  if (std::holds_alternative<torch::enumtype::kSame>(options.padding())) {
    for (size_t i = 0; i < D; ++i) {
      const int64_t total = options.dilation()->at(i) * (options.kernel_size()->at(i) - 1);
      padding.before[i] = total / 2;
      padding.after[i] = total - padding.before[i];
    }
  }
  return padding;
}

template <class Layer>
ConvolutionGeometry geometry_of(const Layer& layer) {
  return {.stride = to_vector(layer.options.stride()),
          .dilation = to_vector(layer.options.dilation()),
          .transposed = Layer::kTransposed,
          .groups = layer.options.groups()};
}

/// The op on a batch, kept as the layer or its scheme says.
template <size_t D, class Layer>
at::Tensor apply(Layer& layer, const at::Tensor& input, const ConvolutionGeometry& geometry) {
  if (input.dim() == D + 1) {
    return apply<D>(layer, input.unsqueeze(0), geometry).squeeze(0);
  }
  ConvolutionExecution execution;
  if (layer.scheme()) {
    const Config& config = layer.scheme()->policy()->config();
    execution.pipeline_threshold = config.pipeline_threshold;
    if (D == 2) {
      execution.cudnn_benchmark = config.cudnn_benchmark_conv2d;
    }
  }
  return planned(layer, input, layer.weight.requires_grad(),
                 [&](const Quantization& quantization, const Retention& retention) {
                   return actnn::convolution(input, layer.weight, if_defined(layer.bias), geometry, quantization,
                                             std::nullopt, retention, execution);
                 });
}

template <size_t D, class Layer>
at::Tensor convolve(Layer& layer, const at::Tensor& input) {
  Padding padding = padding_of(layer.options);
  ConvolutionGeometry geometry = geometry_of(layer);
  at::Tensor padded = input;
  if (!std::holds_alternative<torch::enumtype::kZeros>(layer.options.padding_mode())) {
    // Torch's C++ layers hand the amounts of 'same' to the pad in the wrong order, which shows with kernels of unequal
    // sides. The results here are theirs: conversion must not change a model.
    const bool same = std::holds_alternative<torch::enumtype::kSame>(layer.options.padding());
    padded = pad(input, same ? padding.in_order() : padding.reversed(), layer.options.padding_mode());
    geometry.padding = {0};
  } else if (padding.before == padding.after) {
    geometry.padding = padding.before;
  } else {
    // As torch: 'same' padding that is one longer at the end gets that one as a copy, the rest by the convolution.
    geometry.padding = padding.before;
    for (size_t i = 0; i < padding.after.size(); ++i) {
      padding.after[i] -= padding.before[i];
      padding.before[i] = 0;
    }
    padded = pad(input, padding.reversed(), torch::kZeros);
  }
  return apply<D>(layer, padded, geometry);
}

/// The output padding that makes the result `output_size` large.
template <size_t D>
std::vector<int64_t> output_padding_for(const ConvTransposeOptions<D>& options, const at::Tensor& input,
                                        at::IntArrayRef output_size) {
  TORCH_CHECK_VALUE(output_size.size() == D || output_size.size() == D + 2, convolution_name<D, true>(),
                    ": output_size must have ", D, " or ", D + 2, " elements, got ", output_size);
  output_size = output_size.slice(output_size.size() - D);
  const auto input_size = input.sizes().slice(input.dim() - D);
  std::vector<int64_t> output_padding;
  for (size_t i = 0; i < D; ++i) {
    const int64_t smallest = (input_size[i] - 1) * options.stride()->at(i) - 2 * options.padding()->at(i) +
                             options.dilation()->at(i) * (options.kernel_size()->at(i) - 1) + 1;
    const int64_t largest = smallest + options.stride()->at(i) - 1;
    TORCH_CHECK_VALUE(smallest <= output_size[i] && output_size[i] <= largest, convolution_name<D, true>(),
                      ": output_size of spatial dimension ", i, " must be in ", smallest, "..", largest,
                      " for an input of shape ", input.sizes(), ", got ", output_size[i]);
    output_padding.push_back(output_size[i] - smallest);
  }
  return output_padding;
}

template <size_t D, class Layer>
at::Tensor convolve_transposed(Layer& layer, const at::Tensor& input,
                               const std::optional<at::IntArrayRef>& output_size) {
  TORCH_CHECK_VALUE(std::holds_alternative<torch::enumtype::kZeros>(layer.options.padding_mode()),
                    convolution_name<D, true>(), ": padding_mode must be zeros, got ",
                    torch::enumtype::get_enum_name(layer.options.padding_mode()));
  TORCH_CHECK_VALUE(input.dim() == D + 1 || input.dim() == D + 2, convolution_name<D, true>(), ": input must be ",
                    D + 1, "-D or ", D + 2, "-D, got shape ", input.sizes());
  ConvolutionGeometry geometry = geometry_of(layer);
  geometry.padding = to_vector(layer.options.padding());
  geometry.output_padding =
      output_size ? output_padding_for(layer.options, input, *output_size) : to_vector(layer.options.output_padding());
  return apply<D>(layer, input, geometry);
}

template <size_t D>
void print_padding(std::ostream& stream, const torch::ExpandingArray<D>& padding) {
  if (*padding != *torch::ExpandingArray<D>(0)) {
    stream << ", padding=" << padding;
  }
}

template <size_t D>
void print_padding(std::ostream& stream, const torch::nn::detail::conv_padding_t<D>& padding) {
  if (const auto* amounts = std::get_if<torch::ExpandingArray<D>>(&padding)) {
    print_padding<D>(stream, *amounts);
  } else {
    stream << ", padding='" << (std::holds_alternative<torch::enumtype::kSame>(padding) ? "same" : "valid") << "'";
  }
}

}  // namespace

namespace detail {

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
ConvNdImpl<D, Options, Derived, TorchLayer_>::ConvNdImpl(int64_t in_channels, int64_t out_channels,
                                                         torch::ExpandingArray<D> kernel_size)
    : ConvNdImpl(Options(in_channels, out_channels, kernel_size)) {}

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
ConvNdImpl<D, Options, Derived, TorchLayer_>::ConvNdImpl(const Options& options_) : options(options_) {
  ConvNdImpl::reset();
}

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
ConvNdImpl<D, Options, Derived, TorchLayer_>::ConvNdImpl(const TorchLayer& source, const Quantization& quantization)
    : options(source.options), weight(source.weight), bias(source.bias) {
  check_quantization(convolution_name<D, kTransposed>(), quantization);
  options.quantization(quantization);
  adopt_parameters(*this, source, {"weight", "bias"});
  this->train(source.is_training());
}

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
void ConvNdImpl<D, Options, Derived, TorchLayer_>::check_options() const {
  const std::string layer = convolution_name<D, kTransposed>();
  check_quantization(layer, options.quantization());
  TORCH_CHECK_VALUE(options.in_channels() > 0 && options.out_channels() > 0 && options.groups() > 0, layer,
                    ": in_channels, out_channels and groups must be positive, got ", options.in_channels(), ", ",
                    options.out_channels(), " and ", options.groups());
  TORCH_CHECK_VALUE(options.in_channels() % options.groups() == 0 && options.out_channels() % options.groups() == 0,
                    layer, ": in_channels and out_channels must be divisible by groups (", options.groups(), "), got ",
                    options.in_channels(), " and ", options.out_channels());
  if constexpr (!kTransposed) {
    const bool same = std::holds_alternative<torch::enumtype::kSame>(options.padding());
    TORCH_CHECK_VALUE(!same || *options.stride() == *torch::ExpandingArray<D>(1), layer,
                      ": stride must be 1 with padding 'same', got ", options.stride());
  }
}

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
void ConvNdImpl<D, Options, Derived, TorchLayer_>::reset() {
  check_options();
  std::vector<int64_t> size = {options.out_channels(), options.in_channels() / options.groups()};
  if (kTransposed) {
    size = {options.in_channels(), options.out_channels() / options.groups()};
  }
  size.insert(size.end(), options.kernel_size()->begin(), options.kernel_size()->end());
  weight = this->register_parameter("weight", at::empty(size));
  bias = options.bias() ? this->register_parameter("bias", at::empty({options.out_channels()}))
                        : this->register_parameter("bias", {}, /*requires_grad=*/false);
  reset_parameters();
}

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
void ConvNdImpl<D, Options, Derived, TorchLayer_>::reset_parameters() {
  initialize_parameters(weight, bias);
}

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
void ConvNdImpl<D, Options, Derived, TorchLayer_>::pretty_print(std::ostream& stream) const {
  stream << convolution_name<D, kTransposed>() << '(' << options.in_channels() << ", " << options.out_channels()
         << ", kernel_size=" << options.kernel_size() << ", stride=" << options.stride();
  print_padding<D>(stream, options.padding());
  if (*options.dilation() != *torch::ExpandingArray<D>(1)) {
    stream << ", dilation=" << options.dilation();
  }
  if constexpr (kTransposed) {
    if (*options.output_padding() != *torch::ExpandingArray<D>(0)) {
      stream << ", output_padding=" << options.output_padding();
    }
  }
  if (options.groups() != 1) {
    stream << ", groups=" << options.groups();
  }
  if (!options.bias()) {
    stream << ", bias=false";
  }
  if (!std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode())) {
    stream << ", padding_mode=" << torch::enumtype::get_enum_name(options.padding_mode());
  }
  stream << ", bits=" << options.bits() << ')';
}

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
void ConvNdImpl<D, Options, Derived, TorchLayer_>::save(torch::serialize::OutputArchive& archive) const {
  torch::nn::Module::save(archive);
  save_scheme(archive, *this);
}

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
void ConvNdImpl<D, Options, Derived, TorchLayer_>::load(torch::serialize::InputArchive& archive) {
  torch::nn::Module::load(archive);
  load_scheme(archive, *this);
}

template <size_t D, typename Options, typename Derived, typename TorchLayer_>
std::optional<SchemeOptions> ConvNdImpl<D, Options, Derived, TorchLayer_>::scheme_options() const {
  return SchemeOptions{.num_locations = weight[0][0].numel(), .depthwise_groups = options.groups()};
}

template class ConvNdImpl<1, Conv1dOptions, Conv1dImpl, torch::nn::Conv1dImpl>;
template class ConvNdImpl<2, Conv2dOptions, Conv2dImpl, torch::nn::Conv2dImpl>;
template class ConvNdImpl<3, Conv3dOptions, Conv3dImpl, torch::nn::Conv3dImpl>;
template class ConvNdImpl<1, ConvTranspose1dOptions, ConvTranspose1dImpl, torch::nn::ConvTranspose1dImpl>;
template class ConvNdImpl<2, ConvTranspose2dOptions, ConvTranspose2dImpl, torch::nn::ConvTranspose2dImpl>;
template class ConvNdImpl<3, ConvTranspose3dOptions, ConvTranspose3dImpl, torch::nn::ConvTranspose3dImpl>;

}  // namespace detail

at::Tensor Conv1dImpl::forward(const at::Tensor& input) { return convolve<1>(*this, input); }
at::Tensor Conv2dImpl::forward(const at::Tensor& input) { return convolve<2>(*this, input); }
at::Tensor Conv3dImpl::forward(const at::Tensor& input) { return convolve<3>(*this, input); }

at::Tensor ConvTranspose1dImpl::forward(const at::Tensor& input, const std::optional<at::IntArrayRef>& output_size) {
  return convolve_transposed<1>(*this, input, output_size);
}
at::Tensor ConvTranspose2dImpl::forward(const at::Tensor& input, const std::optional<at::IntArrayRef>& output_size) {
  return convolve_transposed<2>(*this, input, output_size);
}
at::Tensor ConvTranspose3dImpl::forward(const at::Tensor& input, const std::optional<at::IntArrayRef>& output_size) {
  return convolve_transposed<3>(*this, input, output_size);
}

}  // namespace actnn::nn
