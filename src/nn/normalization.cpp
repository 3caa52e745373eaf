#include "actnn/nn/normalization.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/instance_norm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/init.h>

#include <string>

#include "actnn/autograd/normalization.h"
#include "src/nn/parameters.h"

namespace actnn::nn {
namespace {

constexpr const char* kLayerNorm = "actnn::nn::LayerNorm";
constexpr const char* kGroupNorm = "actnn::nn::GroupNorm";

/// Registers weight and bias of this size, or undefined ones.
template <class Layer>
void register_affine(Layer& layer, at::IntArrayRef size, bool affine) {
  const auto parameter = [&](const char* name) {
    return affine ? layer.register_parameter(name, at::empty(size))
                  : layer.register_parameter(name, {}, /*requires_grad=*/false);
  };
  layer.weight = parameter("weight");
  layer.bias = parameter("bias");
}

template <class Layer>
void reset_affine(Layer& layer) {
  if (layer.weight.defined()) {
    torch::nn::init::ones_(layer.weight);
    torch::nn::init::zeros_(layer.bias);
  }
}

}  // namespace

LayerNormImpl::LayerNormImpl(const LayerNormOptions& options_) : options(options_) { LayerNormImpl::reset(); }

LayerNormImpl::LayerNormImpl(const TorchLayer& source, const Quantization& quantization)
    : options(source.options), weight(source.weight), bias(source.bias) {
  check_quantization(kLayerNorm, quantization);
  options.quantization(quantization);
  adopt_parameters(*this, source, {"weight", "bias"});
  train(source.is_training());
}

void LayerNormImpl::reset() {
  check_quantization(kLayerNorm, options.quantization());
  register_affine(*this, options.normalized_shape(), options.elementwise_affine());
  reset_parameters();
}

void LayerNormImpl::reset_parameters() { reset_affine(*this); }

at::Tensor LayerNormImpl::forward(const at::Tensor& input) {
  if (!is_compressible(input.scalar_type())) {
    return at::layer_norm(input, options.normalized_shape(), if_defined(weight), if_defined(bias), options.eps());
  }
  return actnn::layer_norm(input, options.normalized_shape(), if_defined(weight), if_defined(bias), options.eps(),
                           options.quantization());
}

void LayerNormImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << kLayerNorm << '(' << at::IntArrayRef(options.normalized_shape())
         << ", eps=" << options.eps() << ", elementwise_affine=" << options.elementwise_affine()
         << ", bits=" << options.bits() << ')';
}

GroupNormImpl::GroupNormImpl(const GroupNormOptions& options_) : options(options_) { GroupNormImpl::reset(); }

GroupNormImpl::GroupNormImpl(const TorchLayer& source, const Quantization& quantization)
    : options(source.options), weight(source.weight), bias(source.bias) {
  check_quantization(kGroupNorm, quantization);
  options.quantization(quantization);
  adopt_parameters(*this, source, {"weight", "bias"});
  train(source.is_training());
}

void GroupNormImpl::reset() {
  check_quantization(kGroupNorm, options.quantization());
  register_affine(*this, {options.num_channels()}, options.affine());
  reset_parameters();
}

void GroupNormImpl::reset_parameters() { reset_affine(*this); }

at::Tensor GroupNormImpl::forward(const at::Tensor& input) {
  if (!is_compressible(input.scalar_type())) {
    return at::group_norm(input, options.num_groups(), if_defined(weight), if_defined(bias), options.eps());
  }
  return actnn::group_norm(input, options.num_groups(), if_defined(weight), if_defined(bias), options.eps(),
                           options.quantization());
}

void GroupNormImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << kGroupNorm << '(' << options.num_groups() << ", " << options.num_channels()
         << ", eps=" << options.eps() << ", affine=" << options.affine() << ", bits=" << options.bits() << ')';
}

namespace detail {
namespace {

template <size_t D>
std::string instance_norm_name() {
  return "actnn::nn::InstanceNorm" + std::to_string(D) + "d";
}

}  // namespace

template <size_t D, typename Derived, typename TorchLayer_>
InstanceNormNdImpl<D, Derived, TorchLayer_>::InstanceNormNdImpl(const InstanceNormOptions& options_)
    : options(options_) {
  InstanceNormNdImpl::reset();
}

template <size_t D, typename Derived, typename TorchLayer_>
InstanceNormNdImpl<D, Derived, TorchLayer_>::InstanceNormNdImpl(const TorchLayer& source,
                                                                const Quantization& quantization)
    : options(source.options),
      weight(source.weight),
      bias(source.bias),
      running_mean(source.running_mean),
      running_var(source.running_var),
      num_batches_tracked(source.num_batches_tracked) {
  check_quantization(instance_norm_name<D>(), quantization);
  options.quantization(quantization);
  adopt_parameters(*this, source, {"weight", "bias"});
  adopt_buffers(*this, source, {"running_mean", "running_var", "num_batches_tracked"});
  this->train(source.is_training());
}

template <size_t D, typename Derived, typename TorchLayer_>
void InstanceNormNdImpl<D, Derived, TorchLayer_>::reset() {
  check_quantization(instance_norm_name<D>(), options.quantization());
  register_affine(*this, {options.num_features()}, options.affine());
  const bool track = options.track_running_stats();
  running_mean = this->register_buffer("running_mean", track ? at::zeros({options.num_features()}) : at::Tensor());
  running_var = this->register_buffer("running_var", track ? at::ones({options.num_features()}) : at::Tensor());
  num_batches_tracked = this->register_buffer("num_batches_tracked", track ? at::zeros({}, at::kLong) : at::Tensor());
  reset_parameters();
}

template <size_t D, typename Derived, typename TorchLayer_>
void InstanceNormNdImpl<D, Derived, TorchLayer_>::reset_parameters() {
  reset_running_stats();
  reset_affine(*this);
}

template <size_t D, typename Derived, typename TorchLayer_>
void InstanceNormNdImpl<D, Derived, TorchLayer_>::reset_running_stats() {
  if (options.track_running_stats()) {
    running_mean.zero_();
    running_var.fill_(1);
    num_batches_tracked.zero_();
  }
}

template <size_t D, typename Derived, typename TorchLayer_>
at::Tensor InstanceNormNdImpl<D, Derived, TorchLayer_>::normalize(const at::Tensor& input) {
  TORCH_CHECK_VALUE(input.dim() == D + 1 || input.dim() == D + 2, instance_norm_name<D>(), ": input must be ", D + 1,
                    "-D or ", D + 2, "-D, got shape ", input.sizes());
  if (input.dim() == D + 1) {
    return normalize(input.unsqueeze(0)).squeeze(0);
  }
  const bool use_input_stats = this->is_training() || !options.track_running_stats();
  int64_t values = 1;
  for (const int64_t extent : input.sizes().slice(2)) {
    values *= extent;
  }
  TORCH_CHECK_VALUE(!use_input_stats || values != 1, instance_norm_name<D>(),
                    ": input must have more than one spatial element in training, got shape ", input.sizes());
  if (!is_compressible(input.scalar_type())) {
    return at::instance_norm(input, if_defined(weight), if_defined(bias), if_defined(running_mean),
                             if_defined(running_var), use_input_stats, options.momentum(), options.eps(),
                             at::globalContext().userEnabledCuDNN());
  }
  return actnn::instance_norm(input, if_defined(weight), if_defined(bias), if_defined(running_mean),
                              if_defined(running_var), use_input_stats, options.momentum(), options.eps(),
                              options.quantization());
}

template <size_t D, typename Derived, typename TorchLayer_>
void InstanceNormNdImpl<D, Derived, TorchLayer_>::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << instance_norm_name<D>() << '(' << options.num_features() << ", eps=" << options.eps()
         << ", momentum=" << options.momentum() << ", affine=" << options.affine()
         << ", track_running_stats=" << options.track_running_stats() << ", bits=" << options.bits() << ')';
}

template class InstanceNormNdImpl<1, InstanceNorm1dImpl, torch::nn::InstanceNorm1dImpl>;
template class InstanceNormNdImpl<2, InstanceNorm2dImpl, torch::nn::InstanceNorm2dImpl>;
template class InstanceNormNdImpl<3, InstanceNorm3dImpl, torch::nn::InstanceNorm3dImpl>;

}  // namespace detail
}  // namespace actnn::nn
