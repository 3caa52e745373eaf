#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "actnn/blocks/block.h"
#include "actnn/nn/batch_norm.h"
#include "actnn/nn/convolution.h"

/// \file
/// Layers of a module, torch's or ours, run together as one node of autograd (blocks/block.h). A module makes its layers as always,
/// and a chain of them when forward is first called (a clone gets new layers after `reset`); the layers keep their parameters, buffers
/// and names.
///
///     void reset() override {
///       conv = register_module("conv", torch::nn::Conv2d(...));
///       norm = register_module("norm", torch::nn::BatchNorm2d(...));
///       chain = {};
///     }
///     at::Tensor forward(const at::Tensor& input) {
///       if (!chain) {
///         ChainBuilder builder;
///         const auto y = builder.norm(builder.convolution(builder.input(), conv), norm);
///         builder.add(builder.activation(y, ActivationKind::kReLU), builder.input());
///         chain = builder.build({.bits = 4});
///       }
///       return chain.forward(input);
///     }

namespace actnn::nn {

using blocks::ActivationKind;
using blocks::Value;

/// Layers in the order they run in, ready to run.
class Chain {
 public:
  /// No layers.
  Chain() = default;
  explicit operator bool() const { return block_ != nullptr; }

  /// What the layers would give. Errors as of `blocks::Block::run`.
  at::Tensor forward(const at::Tensor& input) const { return forward(std::vector{input}); }
  at::Tensor forward(const std::vector<at::Tensor>& inputs) const;

  /// What is done and kept, as JSON.
  std::string plan() const;
  /// Bytes that the last forward kept.
  int64_t kept_bytes() const { return block_ ? block_->kept_bytes() : 0; }

 private:
  friend class ChainBuilder;

  using Tensors = std::vector<std::function<at::Tensor()>>;
  static std::vector<at::Tensor> all(const Tensors& tensors);

  std::shared_ptr<const blocks::Block> block_;
  Tensors parameters_;
  Tensors buffers_;
  std::vector<std::function<bool()>> batch_statistics_;
};

/// Collects layers. Each method returns the value that the layer makes, for later ones to read.
class ChainBuilder {
 public:
  /// `inputs`: how many tensors forward is given.
  explicit ChainBuilder(int64_t inputs = 1);

  Value input(int64_t number = 0) const { return number; }

  /// Conv1d to Conv3d of torch or actnn, padded by zeros. Errors (c10::ValueError): other padding modes, padding "same" or "valid".
  template <class Convolution>
  Value convolution(Value input, const torch::nn::ModuleHolder<Convolution>& layer);

  /// BatchNorm1d to BatchNorm3d of torch or actnn, or SyncBatchNorm. Errors (c10::ValueError): a SyncBatchNorm without running
  /// statistics.
  template <class Norm>
  Value norm(Value input, const torch::nn::ModuleHolder<Norm>& layer);

  /// `slope`: of a leaky ReLU.
  Value activation(Value input, ActivationKind kind, double slope = 0.01);
  Value add(Value first, Value second);
  Value max_pool(Value input, const MaxPool2dWindow& window);

  /// The chain of what was collected; the result is the last value. Errors (c10::ValueError) as of `blocks::make_plan`.
  Chain build(const blocks::PlanOptions& options = {});

 private:
  blocks::Index add_parameter(std::function<at::Tensor()> tensor);
  blocks::Index add_buffer(std::function<at::Tensor()> tensor);

  blocks::Program program_;
  Chain chain_;
};

// --- Templates -------------------------------------------------------------------------------------------------------

namespace detail {

/// The padding, if it is a list of numbers.
template <class Options>
std::vector<int64_t> padding_of(const Options& options, size_t dimensions) {
  TORCH_CHECK_VALUE(std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode()),
                    "Chain: a convolution must be padded by zeros");
  std::vector<int64_t> padding;
  std::visit(
      [&](const auto& kind) {
        if constexpr (requires { kind->size(); }) {
          padding.assign(kind->begin(), kind->end());
        }
      },
      options.padding());
  TORCH_CHECK_VALUE(padding.size() == dimensions, "Chain: a convolution's padding must be numbers");
  return padding;
}

}  // namespace detail

template <class Convolution>
Value ChainBuilder::convolution(Value input, const torch::nn::ModuleHolder<Convolution>& layer) {
  const auto& module = layer.ptr();
  const auto& options = module->options;
  const auto list = [](const auto& entries) { return std::vector<int64_t>(entries->begin(), entries->end()); };
  const std::vector<int64_t> stride = list(options.stride());
  return program_.add(blocks::Convolution{
      .input = input,
      .weight = add_parameter([module] { return module->weight; }),
      .bias = module->bias.defined() ? std::optional(add_parameter([module] { return module->bias; })) : std::nullopt,
      .stride = stride,
      .padding = detail::padding_of(options, stride.size()),
      .dilation = list(options.dilation()),
      .groups = options.groups()});
}

template <class Norm>
Value ChainBuilder::norm(Value input, const torch::nn::ModuleHolder<Norm>& layer) {
  const auto& module = layer.ptr();
  const auto& options = module->options;
  blocks::BatchNorm step{.input = input, .momentum = options.momentum(), .eps = options.eps()};
  if constexpr (requires { module->group_name; }) {
    // It takes those of its own batch in evaluation, which no step does that has a group.
    TORCH_CHECK_VALUE(options.track_running_stats(), "Chain: a SyncBatchNorm must track running statistics");
    step.group_name = module->group_name;
  }
  if (options.affine()) {
    step.weight = add_parameter([module] { return module->weight; });
    step.bias = add_parameter([module] { return module->bias; });
  }
  if (options.track_running_stats()) {
    step.running_mean = add_buffer([module] { return module->running_mean; });
    step.running_var = add_buffer([module] { return module->running_var; });
    step.num_batches_tracked = add_buffer([module] { return module->num_batches_tracked; });
  }
  chain_.batch_statistics_.emplace_back(
      [module] { return module->is_training() || !module->options.track_running_stats(); });
  return program_.add(step);
}

}  // namespace actnn::nn
