#include "actnn/nn/batch_norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Type.h>
#include <torch/nn/init.h>

#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>

#include "actnn/autograd/batch_norm.h"
#include "actnn/autograd/batch_norm_act.h"
#include "actnn/autograd/sync_batch_norm.h"
#include "src/nn/parameters.h"
#include "src/nn/planned.h"

namespace actnn::nn {
namespace detail {
namespace {

/// "actnn::nn::BatchNorm2d"
template <typename Derived>
std::string norm_name() {
  const std::string name = c10::demangle(typeid(Derived).name());
  return name.substr(0, name.size() - std::string_view("Impl").size());
}

}  // namespace

template <typename Derived>
void BatchNormBase<Derived>::reset() {
  check_quantization(norm_name<Derived>(), options.quantization());
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

template <typename Derived>
void BatchNormBase<Derived>::reset_parameters() {
  reset_running_stats();
  if (options.affine()) {
    torch::nn::init::ones_(weight);
    torch::nn::init::zeros_(bias);
  }
}

template <typename Derived>
void BatchNormBase<Derived>::reset_running_stats() {
  if (options.track_running_stats()) {
    running_mean.zero_();
    running_var.fill_(1);
    num_batches_tracked.zero_();
  }
}

template <typename Derived>
void BatchNormBase<Derived>::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << norm_name<Derived>() << '(' << options.num_features() << ", eps=" << options.eps()
         << ", momentum=";
  if (options.momentum()) {
    stream << *options.momentum();
  } else {
    stream << "None";
  }
  stream << ", affine=" << options.affine() << ", track_running_stats=" << options.track_running_stats()
         << ", bits=" << options.bits() << ')';
}

template <typename Derived>
void BatchNormBase<Derived>::save(torch::serialize::OutputArchive& archive) const {
  torch::nn::Module::save(archive);
  save_scheme(archive, *this);
}

template <typename Derived>
void BatchNormBase<Derived>::load(torch::serialize::InputArchive& archive) {
  torch::nn::Module::load(archive);
  load_scheme(archive, *this);
}

template <typename Derived>
double BatchNormBase<Derived>::next_momentum() {
  double momentum = options.momentum().value_or(0.0);
  if (this->is_training() && num_batches_tracked.defined()) {
    num_batches_tracked += 1;
    if (!options.momentum()) {
      momentum = 1.0 / num_batches_tracked.template item<double>();
    }
  }
  return momentum;
}

template <typename Derived>
bool BatchNormBase<Derived>::wants_copy(const at::Tensor& input) const {
  return (weight.defined() && weight.requires_grad()) || (uses_batch_statistics() && input.requires_grad());
}

template <size_t D, typename Derived, typename TorchLayer_>
BatchNormNdImpl<D, Derived, TorchLayer_>::BatchNormNdImpl(const BatchNormOptions& options_)
    : BatchNormBase<Derived>(options_) {
  BatchNormNdImpl::reset();
}

template <size_t D, typename Derived, typename TorchLayer_>
BatchNormNdImpl<D, Derived, TorchLayer_>::BatchNormNdImpl(const TorchLayer& source, const Quantization& quantization)
    : BatchNormBase<Derived>(BatchNormOptions(source.options)) {
  check_quantization(norm_name<Derived>(), quantization);
  this->options.quantization(quantization);
  this->weight = source.weight;
  this->bias = source.bias;
  this->running_mean = source.running_mean;
  this->running_var = source.running_var;
  this->num_batches_tracked = source.num_batches_tracked;
  adopt_parameters(*this, source, {"weight", "bias"});
  adopt_buffers(*this, source, {"running_mean", "running_var", "num_batches_tracked"});
  this->train(source.is_training());
}

template <size_t D, typename Derived, typename TorchLayer_>
void BatchNormNdImpl<D, Derived, TorchLayer_>::check_input(const at::Tensor& input) const {
  if constexpr (D == 1) {
    TORCH_CHECK_VALUE(input.dim() == 2 || input.dim() == 3, norm_name<Derived>(),
                      ": input must be 2-D or 3-D, got shape ", input.sizes());
  } else {
    TORCH_CHECK_VALUE(input.dim() == D + 2, norm_name<Derived>(), ": input must be ", D + 2, "-D, got shape ",
                      input.sizes());
  }
  if (this->uses_batch_statistics()) {
    int64_t values = input.size(0);
    for (const int64_t extent : input.sizes().slice(2)) {
      values *= extent;
    }
    TORCH_CHECK_VALUE(values != 1, norm_name<Derived>(),
                      ": input must have more than one value per channel in training, got shape ", input.sizes());
  }
}

template <size_t D, typename Derived, typename TorchLayer_>
at::Tensor BatchNormNdImpl<D, Derived, TorchLayer_>::normalize(const at::Tensor& input) {
  check_input(input);
  const double momentum = this->next_momentum();
  return planned(*this, input, this->wants_copy(input),
                 [&](const Quantization& quantization, const Retention& retention) {
                   return actnn::batch_norm(input, if_defined(this->weight), if_defined(this->bias),
                                            if_defined(this->running_mean), if_defined(this->running_var),
                                            this->uses_batch_statistics(), momentum, this->options.eps(), quantization,
                                            std::nullopt, retention);
                 });
}

template <size_t D, typename Derived, typename TorchLayer_>
at::Tensor BatchNormNdImpl<D, Derived, TorchLayer_>::forward_with_activation(const at::Tensor& input,
                                                                             const FusedActivation& activation,
                                                                             std::optional<int64_t> bits) {
  check_input(input);
  const double momentum = this->next_momentum();
  const Quantization& quantization = this->options.quantization();
  const bool tracked = !this->is_training() || this->options.track_running_stats();
  return actnn::batch_norm_act(
      input, if_defined(this->weight), if_defined(this->bias), tracked ? if_defined(this->running_mean) : std::nullopt,
      tracked ? if_defined(this->running_var) : std::nullopt, this->uses_batch_statistics(), momentum,
      this->options.eps(), activation, bits.value_or(quantization.bits), quantization.rounding);
}

template class BatchNormBase<BatchNorm1dImpl>;
template class BatchNormBase<BatchNorm2dImpl>;
template class BatchNormBase<BatchNorm3dImpl>;
template class BatchNormBase<SyncBatchNormImpl>;
template class BatchNormNdImpl<1, BatchNorm1dImpl, torch::nn::BatchNorm1dImpl>;
template class BatchNormNdImpl<2, BatchNorm2dImpl, torch::nn::BatchNorm2dImpl>;
template class BatchNormNdImpl<3, BatchNorm3dImpl, torch::nn::BatchNorm3dImpl>;

}  // namespace detail

SyncBatchNormImpl::SyncBatchNormImpl(const BatchNormOptions& options_, std::string group_name_)
    : BatchNormBase(options_), group_name(std::move(group_name_)) {
  SyncBatchNormImpl::reset();
}

at::Tensor SyncBatchNormImpl::forward(const at::Tensor& input) {
  TORCH_CHECK_VALUE(input.dim() >= 2, detail::norm_name<SyncBatchNormImpl>(), ": input must be 2-D or more, got shape ",
                    input.sizes());
  const double momentum = next_momentum();
  return planned(*this, input, wants_copy(input), [&](const Quantization& quantization, const Retention& retention) {
    if (!is_training()) {
      return actnn::batch_norm(input, if_defined(weight), if_defined(bias), if_defined(running_mean),
                               if_defined(running_var), uses_batch_statistics(), momentum, options.eps(), quantization,
                               std::nullopt, retention);
    }
    return actnn::sync_batch_norm(input, if_defined(weight), if_defined(bias), if_defined(running_mean),
                                  if_defined(running_var), /*training=*/true, momentum, options.eps(), group_name,
                                  quantization, std::nullopt, retention);
  });
}

}  // namespace actnn::nn
