#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/pimpl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "actnn/core/activation.h"
#include "actnn/nn/quantization_options.h"
#include "actnn/nn/quantized_module.h"

namespace actnn::nn {

/// Options of batch norms: those of `torch::nn::BatchNormOptions`, with the same names and defaults, and the
/// quantization of the saved x-hat. `momentum` none: running statistics are the plain average over all batches.
struct BatchNormOptions : QuantizationOptions<BatchNormOptions> {
  /* implicit */ BatchNormOptions(int64_t num_features) : num_features_(num_features) {}

  /// The options of a torch layer.
  explicit BatchNormOptions(const torch::nn::BatchNormOptions& other) : num_features_(other.num_features()) {
    eps(other.eps()).momentum(other.momentum()).affine(other.affine()).track_running_stats(other.track_running_stats());
  }

  TORCH_ARG(int64_t, num_features);
  TORCH_ARG(double, eps) = 1e-5;
  TORCH_ARG(std::optional<double>, momentum) = 0.1;
  TORCH_ARG(bool, affine) = true;
  TORCH_ARG(bool, track_running_stats) = true;
};

using BatchNorm1dOptions = BatchNormOptions;
using BatchNorm2dOptions = BatchNormOptions;
using BatchNorm3dOptions = BatchNormOptions;

namespace detail {

/// What all batch norms share: parameters, running statistics, and how they print and are saved.
template <typename Derived>
class BatchNormBase : public torch::nn::Cloneable<Derived>, public QuantizedModule {
 public:
  void reset() override;
  void reset_parameters();
  void reset_running_stats();
  void pretty_print(std::ostream& stream) const override;
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
  Quantization& quantization() noexcept override { return options.quantization(); }

  BatchNormOptions options;
  /// [num_features], or undefined (`affine` false).
  at::Tensor weight, bias;
  /// [num_features], or undefined (`track_running_stats` false).
  at::Tensor running_mean, running_var;
  /// int64 scalar, or undefined (`track_running_stats` false).
  at::Tensor num_batches_tracked;

 protected:
  explicit BatchNormBase(const BatchNormOptions& options_) : options(options_) {}

  bool uses_batch_statistics() const { return this->is_training() || !options.track_running_stats(); }

  /// Counts the batch, and says how much it weighs in the running statistics.
  double next_momentum();

  /// Whether forward of `input` keeps a copy while a graph is recorded.
  bool wants_copy(const at::Tensor& input) const;

 private:
  std::optional<SchemeOptions> scheme_options() const override { return SchemeOptions{.normalization = true}; }
};

/// What the batch norms over `D` spatial dimensions share. `TorchLayer` is the torch layer that computes the same.
template <size_t D, typename Derived, typename TorchLayer_>
class BatchNormNdImpl : public BatchNormBase<Derived> {
 public:
  using TorchLayer = TorchLayer_;

  explicit BatchNormNdImpl(const BatchNormOptions& options_);

  /// A layer over the very tensors of `source`: its parameters and buffers (not copies), options and training mode.
  explicit BatchNormNdImpl(const TorchLayer& source, const Quantization& quantization = {});

  /// The layer and the activation behind it as one op (`actnn::batch_norm_act`). The packed copy has `bits`, or those
  /// of the layer's quantization if none are given, 2 or more; a policy is not asked.
  at::Tensor forward_with_activation(const at::Tensor& input, const FusedActivation& activation,
                                     std::optional<int64_t> bits = std::nullopt);

 protected:
  at::Tensor normalize(const at::Tensor& input);

 private:
  void check_input(const at::Tensor& input) const;
};

}  // namespace detail

/// `torch::nn::BatchNorm1d` that keeps a quantized copy of x-hat for backward. `input`: [N, C] or [N, C, L],
/// float32, float16 or bfloat16. Result, running statistics and gradient of bias are torch's, bit for bit;
/// `actnn::batch_norm` says what the other gradients are. Parameters, buffers, their names and the archives are those
/// of torch's layer.
class BatchNorm1dImpl : public detail::BatchNormNdImpl<1, BatchNorm1dImpl, torch::nn::BatchNorm1dImpl> {
 public:
  using BatchNormNdImpl::BatchNormNdImpl;
  at::Tensor forward(const at::Tensor& input) { return normalize(input); }
};
TORCH_MODULE(BatchNorm1d);

/// As BatchNorm1d, for `input` [N, C, H, W].
class BatchNorm2dImpl : public detail::BatchNormNdImpl<2, BatchNorm2dImpl, torch::nn::BatchNorm2dImpl> {
 public:
  using BatchNormNdImpl::BatchNormNdImpl;
  at::Tensor forward(const at::Tensor& input) { return normalize(input); }
};
TORCH_MODULE(BatchNorm2d);

/// As BatchNorm1d, for `input` [N, C, D, H, W].
class BatchNorm3dImpl : public detail::BatchNormNdImpl<3, BatchNorm3dImpl, torch::nn::BatchNorm3dImpl> {
 public:
  using BatchNormNdImpl::BatchNormNdImpl;
  at::Tensor forward(const at::Tensor& input) { return normalize(input); }
};
TORCH_MODULE(BatchNorm3d);

/// Batch norm over all ranks of a process group, as `torch.nn.SyncBatchNorm`, that keeps a quantized copy of x-hat
/// for backward; on the CPU (gloo) and on CUDA (NCCL). `input`: [N, C] or [N, C, ...], float32, float16 or bfloat16.
/// `actnn::sync_batch_norm` says what the ranks must agree on, and what result and gradients are. It is BatchNorm,
/// without collectives, in evaluation mode, with the batch's own statistics where running ones are not tracked.
///
///     c10d::register_process_group("world", group);
///     actnn::nn::SyncBatchNorm layer(actnn::nn::BatchNormOptions(64).bits(2), "world");
class SyncBatchNormImpl : public detail::BatchNormBase<SyncBatchNormImpl> {
 public:
  SyncBatchNormImpl(const BatchNormOptions& options_, std::string group_name_);

  at::Tensor forward(const at::Tensor& input);

  /// The name under which the group is registered. It may be changed, and need not exist before the first forward in
  /// training mode.
  std::string group_name;
};
TORCH_MODULE(SyncBatchNorm);

}  // namespace actnn::nn
