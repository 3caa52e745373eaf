#include "actnn/policy/scheme.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "actnn/core/bit_packing.h"
#include "actnn/core/layout.h"
#include "actnn/ops/cache.h"
#include "actnn/ops/sample_statistics.h"
#include "actnn/policy/sample_bits.h"
#include "src/ops/tensors.h"

namespace actnn {

namespace {

/// What a batch norm packs, by this batch's own statistics: a running mean, or that of all ranks, moves ranges little.
at::Tensor normalized(const at::Tensor& input) {
  return std::get<0>(at::native_batch_norm(input, /*weight=*/{}, /*bias=*/{}, /*running_mean=*/{}, /*running_var=*/{},
                                           /*training=*/true, /*momentum=*/0, /*eps=*/1e-5));
}

/// Gives samples `total` bits together, none of them more than one bit more than another.
void share_evenly(int64_t samples, int64_t total, const at::Tensor& like, Plan& plan) {
  const int64_t more = total % samples;
  plan.quantization.bits = total / samples + (more != 0 ? 1 : 0);
  if (more != 0) {
    const at::Tensor bits = at::full({samples}, total / samples, like.options().dtype(at::kByte));
    bits.narrow(0, 0, more).fill_(plan.quantization.bits);
    plan.retention.sample_bits = bits;
    plan.retention.total_bits = total;
  }
}

}  // namespace

/// Sees the gradients that the backward of one use of a layer gets and gives.
class SchemeObserver : public torch::autograd::FunctionPostHook {
 public:
  SchemeObserver(c10::intrusive_ptr<Scheme> scheme, std::optional<Scheme::Use> use)
      : scheme_(std::move(scheme)), use_(std::move(use)) {}

  torch::autograd::variable_list operator()(const torch::autograd::variable_list& grad_inputs,
                                            const torch::autograd::variable_list& grad_outputs) override {
    const at::NoGradGuard no_grad;
    // The op's tensors begin with (input, weight).
    scheme_->learn(use_, grad_outputs[0], grad_inputs.size() > 1 ? grad_inputs[1] : at::Tensor());
    return grad_inputs;
  }

 private:
  c10::intrusive_ptr<Scheme> scheme_;
  std::optional<Scheme::Use> use_;
};

Plan fixed_plan(const Config& config, int64_t group) {
  const auto groups = static_cast<int64_t>(config.activation_compression_bits.size());
  TORCH_CHECK_VALUE(group >= 0 && group < groups,
                    "actnn: group must be an index into activation_compression_bits, which has ", groups,
                    " entries, got ", group);
  return {
      {.bits = config.activation_compression_bits[group],
       .group_size = config.pergroup ? config.group_size : 0,
       .rounding = config.rounding},
      {.compress = config.compress_activation && config.training, .simulate = config.simulate, .offload = config.swap}};
}

c10::intrusive_ptr<Scheme> Scheme::create(const c10::intrusive_ptr<Policy>& policy, const SchemeOptions& options) {
  TORCH_CHECK_VALUE(policy, "actnn::Scheme: policy must be a policy, got a null pointer");
  auto scheme = c10::make_intrusive<Scheme>(policy, options);
  policy->enlist(scheme);
  return scheme;
}

Scheme::Scheme(c10::intrusive_ptr<Policy> policy, SchemeOptions options)
    : policy_(std::move(policy)), options_(std::move(options)) {
  TORCH_CHECK_VALUE(options_.num_locations > 0 && options_.depthwise_groups > 0,
                    "actnn::Scheme: num_locations and depthwise_groups must be positive, got ", options_.num_locations,
                    " and ", options_.depthwise_groups);
  const auto bits = static_cast<double>(fixed_plan(policy_->config(), options_.group).quantization.bits);
  bits_ = options_.normalization ? kMaxBits : bits;
}

void Scheme::set_bits(double bits) {
  TORCH_CHECK_VALUE(bits >= kMinBits && bits <= kMaxBits, "actnn::Scheme: bits must be in 1..8, got ", bits);
  bits_ = bits;
}

at::Tensor Scheme::scales() const { return scales_; }
at::Tensor Scheme::sensitivity() const { return sensitivity_; }

Plan Scheme::plan(const at::Tensor& input) {
  const at::NoGradGuard no_grad;
  policy_->begin_forward(c10::intrusive_ptr<Scheme>::reclaim_copy(this), input);
  const Config& config = policy_->config();
  if (config.empty_cache_threshold) {
    release_cache(input.device(), *config.empty_cache_threshold);
  }
  Plan plan = fixed_plan(config, options_.group);
  planned_.reset();
  is_adaptive_ = false;
  const bool adaptive = options_.normalization ? config.adaptive_bn_scheme : config.adaptive_conv_scheme;
  if (!adaptive || !plan.retention.compress || input.layout() != at::kStrided || input.dim() < 2 ||
      input.numel() == 0) {
    return plan;
  }
  is_adaptive_ = true;
  const int64_t samples = input.size(0);
  dim_ = input.numel() / samples;
  if (options_.normalization) {
    const auto before = policy_->previous();
    bits_ = before ? before->bits() : kMaxBits;
  } else {
    policy_->set_previous(c10::intrusive_ptr<Scheme>::reclaim_copy(this));
  }

  const int64_t total =
      std::max(samples, static_cast<int64_t>(std::floor(bits_ * static_cast<double>(samples) + 1e-6)));
  if (!policy_->measures(input.device())) {
    share_evenly(samples, total, input, plan);
    return plan;
  }
  const int64_t group_size = config.pergroup ? config.group_size : align_up(dim_, kGroupSizeMultiple);
  Use use{.range = group_range_squares(options_.normalization ? normalized(input) : input, group_size),
          .dim = dim_,
          .batch = policy_->batch()};
  std::optional<at::Tensor> gradient;
  if (!options_.normalization) {
    const int64_t pixels = dim_ / input.size(options_.channel_dim);
    use.factor = static_cast<double>(options_.num_locations) / 4.0 / static_cast<double>(options_.depthwise_groups) *
                 static_cast<double>(group_size) / static_cast<double>(pixels);
    gradient = gradient_of(use.batch, use.range);
  }

  const int64_t initial =
      std::min<int64_t>(kMaxBits, std::max(config.initial_bits, static_cast<int64_t>(std::ceil(bits_))));
  const bool of_table = gradient && gradient->dim() == 1;
  at::Tensor sample_bits;
  std::tie(sensitivity_, sample_bits) = allocate_sample_bits(
      of_table ? use.range * *gradient : use.range, of_table ? std::nullopt : gradient, use.factor, initial, total);
  plan.quantization.bits = initial;
  if (total < initial * samples) {
    plan.retention.sample_bits = sample_bits;
    plan.retention.total_bits = total;
  }
  if (!options_.normalization) {
    use.sample_bits = std::move(sample_bits);
    planned_ = std::move(use);
  }
  return plan;
}

void Scheme::observe(const at::Tensor& output) {
  std::optional<Use> use = std::exchange(planned_, std::nullopt);
  // Steps that do not measure count, too: by their backwards.
  const bool counts = is_adaptive_ && !options_.normalization;
  if ((counts || policy_->config().empty_cache_threshold) && output.grad_fn()) {
    output.grad_fn()->add_post_hook(
        std::make_unique<SchemeObserver>(c10::intrusive_ptr<Scheme>::reclaim_copy(this), std::move(use)));
  }
}

/// Whether the scales are of the kind that the configuration asks for now. A table is made to fit the training set.
bool Scheme::has_scales() {
  const bool table = policy_->config().use_gradient;
  if (!scales_.defined() || scales_.dim() != (table ? 1 : 0)) {
    return false;
  }
  if (const int64_t samples = policy_->num_samples(); table && scales_.size(0) < samples) {
    scales_ = at::cat({scales_, at::zeros({samples - scales_.size(0)}, scales_.options())});
  }
  return true;
}

std::optional<at::Tensor> Scheme::gradient_of(const std::optional<at::Tensor>& batch, const at::Tensor& like) {
  const bool table = policy_->config().use_gradient;
  if (table) {
    TORCH_CHECK_VALUE(batch,
                      "actnn::Policy: batch must hold the indices of the samples when use_gradient is on, got none");
    TORCH_CHECK_VALUE(batch->size(0) == like.size(0),
                      "actnn::Policy: batch must hold one index per sample of the batch (", like.size(0), "), got ",
                      batch->size(0));
  }
  if (!has_scales()) {
    return std::nullopt;
  }
  const at::Tensor scales = on_device(scales_, like.device());
  if (!table) {
    return scales;
  }
  const at::Tensor entries = scales.index_select(0, on_device(*batch, like.device()));
  const at::Tensor seen = entries > 0;
  const at::Tensor mean = entries.sum() / seen.sum();  // unseen entries are 0; NaN if there is no other
  return at::where(seen, entries, at::where(seen.any(), mean, at::ones({}, like.options())));
}

at::Tensor Scheme::learn_gradient(const Use& use, const at::Tensor& norms) {
  const bool table = policy_->config().use_gradient;
  if (policy_->update_scale()) {
    if (!has_scales()) {
      scales_ = table ? at::zeros({policy_->num_samples()}, norms.options()) : at::zeros({}, norms.options());
    }
    scales_ = on_device(scales_, norms.device());
    if (!table) {
      return update_gradient_norm_(scales_, norms);
    }
    const at::Tensor batch = on_device(*use.batch, norms.device());
    const at::Tensor before = scales_.index_select(0, batch);
    const at::Tensor updated = at::where(before > 0, 0.5 * before + 0.5 * norms, norms);
    scales_.index_copy_(0, batch, at::where(norms.isfinite(), updated, before));
  }
  const at::Tensor one = at::ones({}, norms.options());
  const std::optional<at::Tensor> gradient = gradient_of(use.batch, norms);
  return gradient ? at::where(*gradient > 0, *gradient, one) : one;
}

void Scheme::learn(std::optional<Use> use, const at::Tensor& grad_output, const at::Tensor& grad_weight) {
  const Config& config = policy_->config();
  if (config.empty_cache_threshold && grad_output.defined()) {
    release_cache(grad_output.device(), *config.empty_cache_threshold);
  }
  if (!grad_output.defined()) {
    return;
  }
  if (!use) {
    policy_->note_backward();
    return;
  }
  const at::Tensor norms = square_norms(grad_output);
  const std::lock_guard lock(mutex_);
  use->gradient = learn_gradient(*use, norms);
  if (grad_weight.defined()) {
    use->weight_gradient =
        at::linalg_vector_norm(grad_weight, /*ord=*/2, std::nullopt, /*keepdim=*/false, /*dtype=*/at::kFloat);
  }
  use->step = policy_->step();  // of the backward, which may come after the next forward
  if (!uses_.empty() && uses_.front().step != use->step) {
    uses_.clear();
  }
  uses_.push_back(*std::move(use));
  policy_->note_backward();
}

std::map<std::string, at::Tensor> Scheme::state() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, at::Tensor> state{{"bits", at::scalar_tensor(bits_, at::kDouble)},
                                          {"format_version", at::scalar_tensor(kFormatVersion, at::kLong)}};
  if (scales_.defined()) {
    state["scales"] = scales_.clone();
  }
  return state;
}

void Scheme::load_state(const std::map<std::string, at::Tensor>& state) {
  const auto bits = state.find("bits");
  TORCH_CHECK_VALUE(bits != state.end() && bits->second.numel() == 1,
                    "actnn::Scheme: state must have 'bits', a scalar");
  // States of the first version have no number; their bits and scales mean the same.
  const auto version = state.find("format_version");
  TORCH_CHECK_VALUE(version == state.end() || version->second.item<int64_t>() == kFormatVersion,
                    "actnn::Scheme: state must be of version ", kFormatVersion, " of the packed format, got version ",
                    version->second.item<int64_t>());
  const auto scales = state.find("scales");
  TORCH_CHECK_VALUE(scales == state.end() || (scales->second.dim() <= 1 && scales->second.scalar_type() == at::kFloat),
                    "actnn::Scheme: state's 'scales' must be a float32 scalar or vector, got ",
                    scales == state.end() ? "none" : scales->second.toString());
  const std::lock_guard lock(mutex_);
  set_bits(bits->second.item<double>());
  scales_ = scales == state.end() ? at::Tensor() : scales->second.clone();
}

}  // namespace actnn
