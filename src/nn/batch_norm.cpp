#include "actnn/nn/batch_norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/init.h>

#include <string>

#include "actnn/autograd/batch_norm.h"
#include "src/nn/parameters.h"
#include "src/nn/planned.h"

namespace actnn::nn::detail {
namespace {

template <size_t D>
std::string layer_name() {
  return "actnn::nn::BatchNorm" + std::to_string(D) + "d";
}

}  // namespace

template <size_t D, typename Derived, typename TorchLayer_>
BatchNormNdImpl<D, Derived, TorchLayer_>::BatchNormNdImpl(const BatchNormOptions& options_) : options(options_) {
  BatchNormNdImpl::reset();
}

template <size_t D, typename Derived, typename TorchLayer_>
BatchNormNdImpl<D, Derived, TorchLayer_>::BatchNormNdImpl(const TorchLayer& source, const Quantization& quantization)
    : options(source.options),
      weight(source.weight),
      bias(source.bias),
      running_mean(source.running_mean),
      running_var(source.running_var),
      num_batches_tracked(source.num_batches_tracked) {
  check_quantization(layer_name<D>(), quantization);
  options.quantization(quantization);
  adopt_parameters(*this, source, {"weight", "bias"});
  adopt_buffers(*this, source, {"running_mean", "running_var", "num_batches_tracked"});
  this->train(source.is_training());
}

template <size_t D, typename Derived, typename TorchLayer_>
void BatchNormNdImpl<D, Derived, TorchLayer_>::reset() {
  check_quantization(layer_name<D>(), options.quantization());
  const auto parameter = [&](const char* name) {
    return options.affine() ? this->register_parameter(name, at::empty({options.num_features()}))
                            : this->register_parameter(name, {}, /*requires_grad=*/false);
  };
  weight = parameter("weight");
  bias = parameter("bias");
  const bool track = options.track_running_stats();
  running_mean = this->register_buffer("running_mean", track ? at::zeros({options.num_features()}) : at::Tensor());
  running_var = this->register_buffer("running_var", track ? at::ones({options.num_features()}) : at::Tensor());
  num_batches_tracked = this->register_buffer("num_batches_tracked", track ? at::zeros({}, at::kLong) : at::Tensor());
  reset_parameters();
}

template <size_t D, typename Derived, typename TorchLayer_>
void BatchNormNdImpl<D, Derived, TorchLayer_>::reset_parameters() {
  reset_running_stats();
  if (options.affine()) {
    torch::nn::init::ones_(weight);
    torch::nn::init::zeros_(bias);
  }
}

template <size_t D, typename Derived, typename TorchLayer_>
void BatchNormNdImpl<D, Derived, TorchLayer_>::reset_running_stats() {
  if (options.track_running_stats()) {
    running_mean.zero_();
    running_var.fill_(1);
    num_batches_tracked.zero_();
  }
}

template <size_t D, typename Derived, typename TorchLayer_>
void BatchNormNdImpl<D, Derived, TorchLayer_>::check_input(const at::Tensor& input, bool use_batch_statistics) const {
  if constexpr (D == 1) {
    TORCH_CHECK_VALUE(input.dim() == 2 || input.dim() == 3, layer_name<D>(), ": input must be 2-D or 3-D, got shape ",
                      input.sizes());
  } else {
    TORCH_CHECK_VALUE(input.dim() == D + 2, layer_name<D>(), ": input must be ", D + 2, "-D, got shape ",
                      input.sizes());
  }
  if (use_batch_statistics) {
    int64_t values = input.size(0);
    for (const int64_t extent : input.sizes().slice(2)) {
      values *= extent;
    }
    TORCH_CHECK_VALUE(values != 1, layer_name<D>(),
                      ": input must have more than one value per channel in training, got shape ", input.sizes());
  }
}

template <size_t D, typename Derived, typename TorchLayer_>
at::Tensor BatchNormNdImpl<D, Derived, TorchLayer_>::normalize(const at::Tensor& input) {
  const bool use_batch_statistics = this->is_training() || !options.track_running_stats();
  check_input(input, use_batch_statistics);
  double momentum = options.momentum().value_or(0.0);
  if (this->is_training() && num_batches_tracked.defined()) {
    num_batches_tracked += 1;
    if (!options.momentum()) {
      momentum = 1.0 / num_batches_tracked.template item<double>();
    }
  }
  const bool wants_copy =
      (weight.defined() && weight.requires_grad()) || (use_batch_statistics && input.requires_grad());
  return planned(*this, input, wants_copy, [&](const Quantization& quantization, const Retention& retention) {
    return actnn::batch_norm(input, if_defined(weight), if_defined(bias), if_defined(running_mean),
                             if_defined(running_var), use_batch_statistics, momentum, options.eps(), quantization,
                             std::nullopt, retention);
  });
}

template <size_t D, typename Derived, typename TorchLayer_>
void BatchNormNdImpl<D, Derived, TorchLayer_>::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << layer_name<D>() << '(' << options.num_features() << ", eps=" << options.eps()
         << ", momentum=";
  if (options.momentum()) {
    stream << *options.momentum();
  } else {
    stream << "None";
  }
  stream << ", affine=" << options.affine() << ", track_running_stats=" << options.track_running_stats()
         << ", bits=" << options.bits() << ')';
}

template <size_t D, typename Derived, typename TorchLayer_>
void BatchNormNdImpl<D, Derived, TorchLayer_>::save(torch::serialize::OutputArchive& archive) const {
  torch::nn::Module::save(archive);
  save_scheme(archive, *this);
}

template <size_t D, typename Derived, typename TorchLayer_>
void BatchNormNdImpl<D, Derived, TorchLayer_>::load(torch::serialize::InputArchive& archive) {
  torch::nn::Module::load(archive);
  load_scheme(archive, *this);
}

template class BatchNormNdImpl<1, BatchNorm1dImpl, torch::nn::BatchNorm1dImpl>;
template class BatchNormNdImpl<2, BatchNorm2dImpl, torch::nn::BatchNorm2dImpl>;
template class BatchNormNdImpl<3, BatchNorm3dImpl, torch::nn::BatchNorm3dImpl>;

}  // namespace actnn::nn::detail
