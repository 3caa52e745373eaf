#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "actnn/autograd/retention.h"
#include "actnn/ops/quantization.h"
#include "actnn/policy/policy.h"

namespace actnn {

/// What a layer tells its scheme about itself.
struct SchemeOptions {
  /// Batch norm: sensitivities are ranges alone, of the normalized input, which is what is packed, and the bits are
  /// those of the convolution or linear layer before it.
  bool normalization = false;
  int64_t group = 0;             ///< index into `Config::activation_compression_bits`
  int64_t num_locations = 1;     ///< elements of the kernel; 1 for linear layers
  int64_t depthwise_groups = 1;  ///< groups of the convolution
  int64_t channel_dim = 1;       ///< of the input; -1 for linear layers
  std::string name{};
};

/// How one forward saves its activation.
struct Plan {
  Quantization quantization{};
  Retention retention{};
};

/// The plan of a layer without a scheme: the bits of its group. Errors (c10::ValueError): a group that does not exist.
Plan fixed_plan(const Config& config, int64_t group);

/// How the activations of one layer are saved: bits for the layer, which the policy allocates, and bits for each sample
/// of a batch within them (Chen et al., "ActNN", ICML 2021, section 4.2).
///
/// A layer calls `plan` before its op and `observe` with the op's result, if the activation is saved at all:
///
///     const Plan plan = scheme->plan(input);
///     at::Tensor output = actnn::convolution(input, weight, bias, geometry, plan.quantization, {}, plan.retention);
///     scheme->observe(output);
///
/// Sensitivity of sample i: C_i = (num_locations / 4 / depthwise_groups) R_i g_i, with R_i = (group_size / pixels) x
/// the sum over its groups of (max - min)^2 and g_i the squared norm of the output's gradient: a running scalar, or an
/// entry of a table over the training set. Everything that is computed stays on the device. In steps that do not
/// measure (`Config::adapt_interval`) samples have the layer's bits, rounded up or down.
class Scheme : public torch::CustomClassHolder {
 public:
  /// A scheme that its policy knows. Errors (c10::ValueError): a group that the policy's configuration does not have;
  /// counts that are not positive.
  static c10::intrusive_ptr<Scheme> create(const c10::intrusive_ptr<Policy>& policy, const SchemeOptions& options);

  Scheme(c10::intrusive_ptr<Policy> policy, SchemeOptions options);  ///< what `create` calls

  const SchemeOptions& options() const noexcept { return options_; }
  const c10::intrusive_ptr<Policy>& policy() const noexcept { return policy_; }

  /// Bits per element on average, as last allocated: 1..8.
  double bits() const noexcept { return bits_; }
  void set_bits(double bits);

  /// How to save `input`, [N, ...]. With `Config::use_gradient` the policy's batch must have N indices
  /// (c10::ValueError).
  Plan plan(const at::Tensor& input);

  /// `output` is the result of the op that was called with the last plan: its backward will report the gradients'
  /// norms.
  void observe(const at::Tensor& output);

  /// g: a scalar, or a table [num_samples]; float32. Undefined before the first backward.
  at::Tensor scales() const;
  /// C of the last plan, float32 [N]; undefined before the first.
  at::Tensor sensitivity() const;
  /// Elements per sample of the last plan.
  int64_t dim() const noexcept { return dim_; }

  /// What a checkpoint must contain: "bits", "scales".
  std::map<std::string, at::Tensor> state() const;
  /// Errors (c10::ValueError): entries that are missing or not what `state` gave.
  void load_state(const std::map<std::string, at::Tensor>& state);

 private:
  friend class Policy;
  friend class SchemeObserver;

  /// One use of the layer in forward, and what its backward found.
  struct Use {
    at::Tensor range{};            ///< squared ranges, [N]
    double factor = 1;             ///< C = factor x range x g
    at::Tensor gradient{};         ///< g, scalar or [N]
    at::Tensor sample_bits{};      ///< uint8 [N]
    int64_t dim = 0;               ///< elements per sample
    at::Tensor weight_gradient{};  ///< norm, scalar; undefined if there is none
    std::optional<at::Tensor> batch{};
    int64_t step = 0;  ///< of the policy, in backward
  };

  void learn(std::optional<Use> use, const at::Tensor& grad_output, const at::Tensor& grad_weight);
  /// g as far as it is known, 0 or none if it is not: a scalar, or with a table an entry for each sample.
  std::optional<at::Tensor> gradient_of(const std::optional<at::Tensor>& batch, const at::Tensor& like);
  /// g after a backward found these squared norms.
  at::Tensor learn_gradient(const Use& use, const at::Tensor& norms);
  bool has_scales();

  c10::intrusive_ptr<Policy> policy_;
  SchemeOptions options_;
  double bits_ = 8;
  at::Tensor scales_;
  at::Tensor sensitivity_;
  int64_t dim_ = 0;
  std::optional<Use> planned_;
  bool is_adaptive_ = false;  ///< the last plan
  std::vector<Use> uses_;     ///< of the last backward
  mutable std::mutex mutex_;
};

}  // namespace actnn
