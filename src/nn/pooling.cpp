#include "actnn/nn/pooling.h"

#include <ATen/ops/adaptive_avg_pool1d.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/adaptive_avg_pool3d.h>
#include <ATen/ops/avg_pool1d.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/avg_pool3d.h>
#include <ATen/ops/max_pool1d.h>
#include <ATen/ops/max_pool1d_with_indices.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/max_pool3d.h>
#include <ATen/ops/max_pool3d_with_indices.h>
#include <torch/nn/modules/utils.h>

#include <string>
#include <vector>

#include "actnn/autograd/pooling.h"
#include "src/nn/parameters.h"

namespace actnn::nn {
namespace {

template <size_t D>
std::vector<int64_t> to_vector(const torch::ExpandingArray<D>& array) {
  return {array->begin(), array->end()};
}

template <size_t D>
MaxPoolGeometry geometry_of(const torch::nn::MaxPoolOptions<D>& options) {
  return {.kernel_size = to_vector(options.kernel_size()),
          .stride = to_vector(options.stride()),
          .padding = to_vector(options.padding()),
          .dilation = to_vector(options.dilation()),
          .ceil_mode = options.ceil_mode()};
}

template <size_t D>
AvgPoolGeometry geometry_of(const torch::nn::AvgPoolOptions<D>& options) {
  return {.kernel_size = to_vector(options.kernel_size()),
          .stride = to_vector(options.stride()),
          .padding = to_vector(options.padding()),
          .ceil_mode = options.ceil_mode(),
          .count_include_pad = options.count_include_pad(),
          // Torch's 1-D layer ignores it.
          .divisor_override = D == 1 ? std::nullopt : options.divisor_override()};
}

/// The output size, where it is none the input's.
template <class Options>
std::vector<int64_t> output_size_of(const Options& options, const at::Tensor& input) {
  return torch::nn::modules::utils::_list_with_default(options.output_size(), input.sizes());
}

template <size_t D>
void print(std::ostream& stream, const torch::nn::MaxPoolOptions<D>& options) {
  stream << "actnn::nn::MaxPool" << D << "d(kernel_size=" << options.kernel_size() << ", stride=" << options.stride()
         << ", padding=" << options.padding() << ", dilation=" << options.dilation()
         << ", ceil_mode=" << (options.ceil_mode() ? "true" : "false") << ')';
}

template <size_t D>
void print(std::ostream& stream, const torch::nn::AvgPoolOptions<D>& options) {
  stream << "actnn::nn::AvgPool" << D << "d(kernel_size=" << options.kernel_size() << ", stride=" << options.stride()
         << ", padding=" << options.padding() << ')';
}

template <size_t D, class OutputSize>
void print_adaptive(std::ostream& stream, const OutputSize& output_size) {
  stream << "actnn::nn::AdaptiveAvgPool" << D << "d(output_size=" << output_size << ')';
}

}  // namespace

at::Tensor MaxPool2dImpl::forward(const at::Tensor& input) {
  if (is_compressible(input.scalar_type())) {
    return actnn::max_pool2d(input, geometry_of(options));
  }
  return at::max_pool2d(input, options.kernel_size(), options.stride(), options.padding(), options.dilation(),
                        options.ceil_mode());
}

std::tuple<at::Tensor, at::Tensor> MaxPool2dImpl::forward_with_indices(const at::Tensor& input) {
  if (is_compressible(input.scalar_type())) {
    return actnn::max_pool2d_with_indices(input, geometry_of(options));
  }
  return at::max_pool2d_with_indices(input, options.kernel_size(), options.stride(), options.padding(),
                                     options.dilation(), options.ceil_mode());
}

at::Tensor MaxPool1dImpl::forward(const at::Tensor& input) {
  if (is_compressible(input.scalar_type())) {
    return actnn::max_pool1d(input, geometry_of(options));
  }
  return at::max_pool1d(input, options.kernel_size(), options.stride(), options.padding(), options.dilation(),
                        options.ceil_mode());
}

std::tuple<at::Tensor, at::Tensor> MaxPool1dImpl::forward_with_indices(const at::Tensor& input) {
  if (is_compressible(input.scalar_type())) {
    return actnn::max_pool1d_with_indices(input, geometry_of(options));
  }
  return at::max_pool1d_with_indices(input, options.kernel_size(), options.stride(), options.padding(),
                                     options.dilation(), options.ceil_mode());
}

at::Tensor MaxPool3dImpl::forward(const at::Tensor& input) {
  if (is_compressible(input.scalar_type())) {
    return actnn::max_pool3d(input, geometry_of(options));
  }
  return at::max_pool3d(input, options.kernel_size(), options.stride(), options.padding(), options.dilation(),
                        options.ceil_mode());
}

std::tuple<at::Tensor, at::Tensor> MaxPool3dImpl::forward_with_indices(const at::Tensor& input) {
  if (is_compressible(input.scalar_type())) {
    return actnn::max_pool3d_with_indices(input, geometry_of(options));
  }
  return at::max_pool3d_with_indices(input, options.kernel_size(), options.stride(), options.padding(),
                                     options.dilation(), options.ceil_mode());
}

at::Tensor AvgPool1dImpl::forward(const at::Tensor& input) {
  if (is_compressible(input.scalar_type())) {
    return actnn::avg_pool1d(input, geometry_of(options));
  }
  return at::avg_pool1d(input, options.kernel_size(), options.stride(), options.padding(), options.ceil_mode(),
                        options.count_include_pad());
}

at::Tensor AvgPool2dImpl::forward(const at::Tensor& input) {
  if (is_compressible(input.scalar_type())) {
    return actnn::avg_pool2d(input, geometry_of(options));
  }
  return at::avg_pool2d(input, options.kernel_size(), options.stride(), options.padding(), options.ceil_mode(),
                        options.count_include_pad(), options.divisor_override());
}

at::Tensor AvgPool3dImpl::forward(const at::Tensor& input) {
  if (is_compressible(input.scalar_type())) {
    return actnn::avg_pool3d(input, geometry_of(options));
  }
  return at::avg_pool3d(input, options.kernel_size(), options.stride(), options.padding(), options.ceil_mode(),
                        options.count_include_pad(), options.divisor_override());
}

at::Tensor AdaptiveAvgPool1dImpl::forward(const at::Tensor& input) {
  return is_compressible(input.scalar_type()) ? actnn::adaptive_avg_pool1d(input, options.output_size()->at(0))
                                              : at::adaptive_avg_pool1d(input, options.output_size());
}

at::Tensor AdaptiveAvgPool2dImpl::forward(const at::Tensor& input) {
  const std::vector<int64_t> output_size = output_size_of(options, input);
  return is_compressible(input.scalar_type()) ? actnn::adaptive_avg_pool2d(input, output_size)
                                              : at::adaptive_avg_pool2d(input, output_size);
}

at::Tensor AdaptiveAvgPool3dImpl::forward(const at::Tensor& input) {
  const std::vector<int64_t> output_size = output_size_of(options, input);
  return is_compressible(input.scalar_type()) ? actnn::adaptive_avg_pool3d(input, output_size)
                                              : at::adaptive_avg_pool3d(input, output_size);
}

void MaxPool1dImpl::pretty_print(std::ostream& stream) const { print(stream, options); }
void MaxPool2dImpl::pretty_print(std::ostream& stream) const { print(stream, options); }
void MaxPool3dImpl::pretty_print(std::ostream& stream) const { print(stream, options); }

void AvgPool1dImpl::pretty_print(std::ostream& stream) const { print(stream, options); }
void AvgPool2dImpl::pretty_print(std::ostream& stream) const { print(stream, options); }
void AvgPool3dImpl::pretty_print(std::ostream& stream) const { print(stream, options); }

void AdaptiveAvgPool1dImpl::pretty_print(std::ostream& stream) const {
  print_adaptive<1>(stream, options.output_size());
}
void AdaptiveAvgPool2dImpl::pretty_print(std::ostream& stream) const {
  print_adaptive<2>(stream, options.output_size());
}
void AdaptiveAvgPool3dImpl::pretty_print(std::ostream& stream) const {
  print_adaptive<3>(stream, options.output_size());
}

}  // namespace actnn::nn
