#include "actnn/policy/policy.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "actnn/core/bit_packing.h"
#include "actnn/policy/bit_allocation.h"
#include "actnn/policy/scheme.h"
#include "src/ops/stream_capture.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

/// Mean over the position inside a step of the squared distance that rounding leaves, over the bound 1/4 step^2 in
/// which sensitivities are counted: 1/6 step^2 for points of the grid chosen at random, else 1/12 step^2.
double mean_over_bound(Rounding rounding) { return rounding == Rounding::kStochastic ? 4.0 / 6.0 : 4.0 / 12.0; }

/// The elements of an allocation: layers, or layers x samples. What the host knows of them goes to the device at once.
struct Units {
  std::vector<at::Tensor> sensitivity;  ///< without the factors
  std::vector<double> factor;
  std::vector<int64_t> weight;
  std::vector<int64_t> layer;
  int64_t elements = 0;  ///< the sum of all weights

  void add(const at::Tensor& sensitivities, double its_factor, int64_t unit_elements, int64_t index) {
    const int64_t count = sensitivities.numel();
    sensitivity.push_back(sensitivities);
    factor.insert(factor.end(), count, its_factor);
    weight.insert(weight.end(), count, unit_elements);
    layer.insert(layer.end(), count, index);
    elements += unit_elements * count;
  }
};

/// The numbers on the device, without a wait.
template <class Number>
at::Tensor numbers_on_device(const std::vector<Number>& numbers, at::ScalarType dtype, c10::Device device) {
  at::Tensor host = at::empty({static_cast<int64_t>(numbers.size())},
                              at::TensorOptions().dtype(dtype).pinned_memory(!device.is_cpu()));
  std::copy(numbers.begin(), numbers.end(), host.mutable_data_ptr<Number>());
  return host.to(device, /*non_blocking=*/true);
}

}  // namespace

/// Bits for layers, on their way to the host.
struct Policy::Allocation {
  std::vector<c10::intrusive_ptr<Scheme>> schemes;
  at::Tensor bits;                     ///< float64 [schemes], on the host, perhaps not yet complete; NaN: as before
  std::optional<c10::Event> complete;  ///< none: it is
};

/// The layers that the policy is for.
struct Policy::Layers {
  using Weak = c10::weak_intrusive_ptr<Scheme>;

  std::vector<Weak> all;  ///< in the order of construction; some may be gone
  Weak previous{c10::intrusive_ptr<Scheme>()};
  Weak first{c10::intrusive_ptr<Scheme>()};  ///< in the last forward
  std::unique_ptr<Allocation> pending;
};

Policy::Policy(Config config) : config_(std::move(config)), layers_(std::make_unique<Layers>()) {}
Policy::~Policy() = default;

void Policy::set_batch(std::optional<at::Tensor> indices) {
  if (indices) {
    TORCH_CHECK_TYPE(at::isIntegralType(indices->scalar_type(), /*includeBool=*/false),
                     "actnn::Policy: batch must hold integers, got ", indices->scalar_type());
    TORCH_CHECK_VALUE(indices->dim() == 1, "actnn::Policy: batch must be 1-D, got shape ", indices->sizes());
    if (indices->device().is_cpu() && indices->numel() > 0) {
      const int64_t smallest = indices->min().item<int64_t>();
      const int64_t largest = indices->max().item<int64_t>();
      TORCH_CHECK_VALUE(!config_.use_gradient || (smallest >= 0 && largest < num_samples_),
                        "actnn::Policy: batch must hold indices in 0..num_samples-1 = 0..", num_samples_ - 1, ", got ",
                        smallest, "..", largest);
    }
    indices = indices->to(at::kLong);
  }
  batch_ = std::move(indices);
}

void Policy::set_num_samples(int64_t samples) {
  TORCH_CHECK_VALUE(samples > 0, "actnn::Policy: num_samples must be positive, got ", samples);
  num_samples_ = samples;
}

void Policy::set_noise_correction(double factor) {
  TORCH_CHECK_VALUE(factor > 0 && factor < std::numeric_limits<double>::infinity(),
                    "actnn::Policy: the noise correction must be positive and finite, got ", factor);
  noise_correction_ = factor;
}

void Policy::enlist(const c10::intrusive_ptr<Scheme>& scheme) {
  const std::lock_guard lock(mutex_);
  std::erase_if(layers_->all, [](const auto& weak) { return weak.expired(); });
  layers_->all.emplace_back(scheme);
}

std::vector<c10::intrusive_ptr<Scheme>> Policy::schemes() const {
  const std::lock_guard lock(mutex_);
  return living();
}

std::vector<c10::intrusive_ptr<Scheme>> Policy::living() const {
  std::vector<c10::intrusive_ptr<Scheme>> alive;
  for (const auto& weak : layers_->all) {
    if (auto scheme = weak.lock()) {
      alive.push_back(std::move(scheme));
    }
  }
  return alive;
}

c10::intrusive_ptr<Scheme> Policy::previous() const {
  const std::lock_guard lock(mutex_);
  return layers_->previous.lock();
}

void Policy::set_previous(const c10::intrusive_ptr<Scheme>& scheme) {
  const std::lock_guard lock(mutex_);
  layers_->previous = Layers::Weak(scheme);
}

void Policy::begin_forward(const c10::intrusive_ptr<Scheme>& scheme, const at::Tensor& input) {
  {
    // The layer that was the first in a forward is the first in the next, and has none before it.
    const std::lock_guard lock(mutex_);
    if (layers_->first.expired()) {
      layers_->first = Layers::Weak(scheme);
    }
    if (layers_->first._unsafe_get_target() == scheme.get()) {
      layers_->previous = Layers::Weak(c10::intrusive_ptr<Scheme>());
    }
  }
  if (!backward_came_ || torch::autograd::get_current_graph_task_id() != -1 || is_capturing(input.device())) {
    return;
  }
  const std::lock_guard lock(mutex_);
  if (!backward_came_.exchange(false)) {
    return;
  }
  finish(std::move(layers_->pending));
  if (config_.perlayer) {
    layers_->pending = allocate();
    if (layers_->pending && !layers_->pending->complete) {
      finish(std::move(layers_->pending));
    }
  }
  layers_->previous = Layers::Weak(c10::intrusive_ptr<Scheme>());
  layers_->first = Layers::Weak(scheme);
  ++step_;
}

bool Policy::measures(c10::Device device) const {
  return config_.adapt_interval == 1 || (step_ % config_.adapt_interval == 0 && !is_capturing(device));
}

void Policy::allocate_per_layer() {
  const std::lock_guard lock(mutex_);
  finish(std::move(layers_->pending));
  finish(allocate());
}

void Policy::finish(std::unique_ptr<Allocation> allocation) {
  if (!allocation) {
    return;
  }
  if (allocation->complete) {
    allocation->complete->synchronize();
  }
  const auto* bits = allocation->bits.const_data_ptr<double>();
  for (const auto& scheme : allocation->schemes) {
    if (const double allocated = *bits++; std::isfinite(allocated)) {
      scheme->set_bits(std::clamp(allocated, static_cast<double>(kMinBits), static_cast<double>(kMaxBits)));
    }
  }
}

std::optional<c10::Device> Policy::device_of_step() const {
  std::optional<c10::Device> device;
  for (const auto& scheme : living()) {
    const std::lock_guard lock(scheme->mutex_);
    for (const Scheme::Use& use : scheme->uses_) {
      if (use.step == step_ && (!device || device->is_cpu())) {
        device = use.range.device();
      }
    }
  }
  return device;
}

std::unique_ptr<Policy::Allocation> Policy::allocate() const {
  const at::NoGradGuard no_grad;
  auto result = std::make_unique<Allocation>();
  std::vector<at::Tensor> layer_bits;
  const std::optional<c10::Device> device = device_of_step();

  // With a noise target all layers are one problem.
  const size_t problems = config_.noise_target ? 1 : config_.activation_compression_bits.size();
  for (size_t problem = 0; problem < problems; ++problem) {
    const int64_t average = config_.activation_compression_bits[problem];
    const bool by_layer = !config_.noise_target && average == config_.initial_bits;
    Units units;
    at::Tensor gradient;
    const size_t first = result->schemes.size();
    for (const auto& scheme : living()) {
      const std::lock_guard lock(scheme->mutex_);
      if (!config_.noise_target && scheme->options().group != static_cast<int64_t>(problem)) {
        continue;
      }
      const auto index = static_cast<int64_t>(result->schemes.size() - first);
      bool takes_part = false;
      for (const Scheme::Use& use : scheme->uses_) {
        if (use.step != step_) {
          continue;
        }
        at::Tensor sensitivity = on_device(use.range * use.gradient, *device);
        const int64_t samples = sensitivity.size(0);
        if (by_layer) {
          sensitivity = sensitivity.sum(0, /*keepdim=*/true);
        }
        units.add(sensitivity, use.factor, by_layer ? samples * use.dim : use.dim, index);
        if (config_.noise_target && use.weight_gradient.defined()) {
          const at::Tensor norm = on_device(use.weight_gradient, *device).to(at::kDouble);
          gradient = gradient.defined() ? gradient + norm.square() : norm.square();
        }
        takes_part = true;
      }
      if (takes_part) {
        result->schemes.push_back(scheme);
      }
    }
    if (units.weight.empty()) {
      continue;
    }
    const at::Tensor sensitivity =
        at::cat(units.sensitivity).to(at::kDouble) * numbers_on_device(units.factor, at::kDouble, *device);
    const at::Tensor weight = numbers_on_device(units.weight, at::kLong, *device);
    const at::Tensor layer = numbers_on_device(units.layer, at::kLong, *device);
    const bool from_eight = by_layer || config_.noise_target;
    const at::Tensor start =
        at::full(weight.sizes(), from_eight ? kMaxBits : config_.initial_bits, weight.options().dtype(at::kByte));
    at::Tensor bits;
    if (config_.noise_target) {
      const at::Tensor allowed =
          gradient.defined() ? gradient * *config_.noise_target : at::zeros({}, sensitivity.options());
      bits = allocate_bits_for_noise(start, sensitivity * (mean_over_bound(config_.rounding) * noise_correction_),
                                     weight, allowed);
    } else {
      bits = allocate_bits(start, sensitivity, weight, average * units.elements);
    }
    const auto layers = static_cast<int64_t>(result->schemes.size() - first);
    const at::Tensor total = at::zeros({layers}, sensitivity.options());
    at::Tensor means =
        total.index_add(0, layer, (bits * weight).to(at::kDouble)) / total.index_add(0, layer, weight.to(at::kDouble));
    if (config_.noise_target && gradient.defined()) {
      means = means.masked_fill(~gradient.isfinite(), std::numeric_limits<double>::quiet_NaN());
    }
    layer_bits.push_back(means);
  }

  if (result->schemes.empty()) {
    return nullptr;
  }
  const at::Tensor all = at::cat(layer_bits);
  if (device->is_cpu()) {
    result->bits = all;
    return result;
  }
  result->bits = at::empty(all.sizes(), all.options().device(at::kCPU).pinned_memory(true));
  result->bits.copy_(all, /*non_blocking=*/true);
  result->complete.emplace(device->type());
  result->complete->record(c10::impl::VirtualGuardImpl(device->type()).getStream(*device));
  return result;
}

double Policy::predicted_noise() const {
  const at::NoGradGuard no_grad;
  const std::lock_guard lock(mutex_);
  const auto schemes = living();
  int64_t step = -1;
  for (const auto& scheme : schemes) {
    const std::lock_guard scheme_lock(scheme->mutex_);
    for (const Scheme::Use& use : scheme->uses_) {
      step = std::max(step, use.step);
    }
  }
  double variance = 0;
  double gradient = 0;
  for (const auto& scheme : schemes) {
    const std::lock_guard scheme_lock(scheme->mutex_);
    for (const Scheme::Use& use : scheme->uses_) {
      if (use.step == step && use.weight_gradient.defined()) {
        const at::Tensor levels = at::pow(2.0, use.sample_bits.to(at::kDouble)) - 1.0;
        variance += use.factor * (use.range * use.gradient / levels.square()).sum().item<double>();
        const auto norm = use.weight_gradient.item<double>();
        gradient += norm * norm;
      }
    }
  }
  return gradient > 0 ? variance * mean_over_bound(config_.rounding) * noise_correction_ / gradient
                      : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace actnn
