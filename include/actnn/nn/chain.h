#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "actnn/blocks/block.h"
#include "actnn/nn/batch_norm.h"
#include "actnn/nn/convolution.h"
#include "actnn/ops/max_pool.h"

/// \file
/// Layers of a module, torch's or ours, run together as one node of autograd (blocks/block.h). A module makes its
/// layers as always, and a chain of them when forward is first called (a clone gets new layers after `reset`); the
/// layers keep their parameters, buffers and names.
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

using actnn::ActivationKind;
using blocks::Value;

/// Layers in the order they run in, ready to run.
class Chain {
 public:
  /// No layers.
  Chain() = default;
  explicit operator bool() const { return layers_ != nullptr; }

  /// What the layers would give. Errors as of `blocks::Block::run`.
  at::Tensor forward(const at::Tensor& input) const { return forward(std::vector{input}); }
  at::Tensor forward(const std::vector<at::Tensor>& inputs) const;

  /// What is done and saved in training, as JSON (blocks/plan.h).
  std::string plan() const;
  /// Bytes that the last forward saved.
  int64_t saved_bytes() const;

 private:
  friend class ChainBuilder;

  struct Layers;

  std::shared_ptr<Layers> layers_;  // copies share them
};

/// Collects layers. Each method returns the value that the layer makes, for later ones to read.
class ChainBuilder {
 public:
  /// `inputs`: how many tensors forward is given.
  explicit ChainBuilder(int64_t inputs = 1);

  Value input(int64_t number = 0) const { return {number}; }

  /// Conv1d to Conv3d and ConvTranspose1d to ConvTranspose3d of torch or actnn, padded by zeros; a transposed one has
  /// the output size that its options say. Errors (c10::ValueError): other padding modes, padding "same" or "valid".
  template <class Convolution>
  Value convolution(Value input, const torch::nn::ModuleHolder<Convolution>& layer);

  /// Linear of torch or actnn.
  template <class Linear>
  Value linear(Value input, const torch::nn::ModuleHolder<Linear>& layer);

  /// BatchNorm1d to BatchNorm3d of torch or actnn, or SyncBatchNorm. Errors (c10::ValueError): a SyncBatchNorm without
  /// running statistics.
  template <class Norm>
  Value norm(Value input, const torch::nn::ModuleHolder<Norm>& layer);

  /// LayerNorm of torch or actnn.
  template <class Norm>
  Value layer_norm(Value input, const torch::nn::ModuleHolder<Norm>& layer);

  /// Attention of a value to itself, with the layer's weights, heads and dropout. `input`: [N, length, features], as
  /// with `batch_first` in Python, with the N of the chain's first input; `causal`: a position sees itself and those
  /// before it. Errors (c10::ValueError): a layer whose keys or values have other features, or that adds some.
  Value self_attention(Value input, const torch::nn::MultiheadAttention& layer, bool causal = false);

  /// `slope`: of a leaky ReLU.
  Value activation(Value input, ActivationKind kind, double slope = 0.01);
  Value add(Value first, Value second);
  Value multiply(Value first, Value second);
  Value max_pool(Value input, const MaxPool2dWindow& window);
  /// In training only, as `is_training` says at each forward.
  Value dropout(Value input, double probability, std::function<bool()> is_training);

  /// The chain of what was collected; the result is the last value. Errors (c10::ValueError) as of `blocks::make_plan`.
  Chain build(const blocks::PlanOptions& options = {});

 private:
  using Tensor = std::function<at::Tensor()>;

  struct ConvolutionOptions {
    std::vector<int64_t> stride;
    std::vector<int64_t> padding;
    std::vector<int64_t> dilation;
    int64_t groups;
    bool transposed;
    std::vector<int64_t> output_padding;
  };
  struct NormOptions {
    std::optional<double> momentum;
    double eps;
    std::optional<std::string> group_name;
    std::function<bool()> is_training;
  };
  struct NormTensors {
    Tensor weight;
    Tensor bias;
    Tensor running_mean;
    Tensor running_var;
    Tensor num_batches_tracked;
  };

  Value add_convolution(Value input, Tensor weight, Tensor bias, ConvolutionOptions options);
  Value add_linear(Value input, Tensor weight, Tensor bias);
  Value add_norm(Value input, NormTensors tensors, NormOptions options);
  Value add_layer_norm(Value input, Tensor weight, Tensor bias, int64_t dimensions, double eps);

  /// Errors (c10::Error): after `build`.
  Chain::Layers& layers() const;

  std::shared_ptr<Chain::Layers> layers_;
};

// --- Templates -------------------------------------------------------------------------------------------------------

namespace detail {

/// The numbers of a torch::ExpandingArray.
template <class Array>
std::vector<int64_t> list_of(const Array& array) {
  return {array->begin(), array->end()};
}

/// The padding, if it is a list of numbers.
template <class Options>
std::vector<int64_t> padding_of(const Options& options) {
  TORCH_CHECK_VALUE(std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode()),
                    "Chain: a convolution must be padded by zeros");
  if constexpr (requires { options.padding()->size(); }) {
    return list_of(options.padding());
  } else {
    std::vector<int64_t> padding;
    std::visit(
        [&](const auto& kind) {
          if constexpr (requires { kind->size(); }) {
            padding = list_of(kind);
          }
        },
        options.padding());
    TORCH_CHECK_VALUE(!padding.empty(), "Chain: a convolution's padding must be numbers");
    return padding;
  }
}

/// Whether a convolution is transposed: torch's options say it, the type of ours does.
template <class Options>
bool is_transposed(const Options& options) {
  if constexpr (requires { options.transposed(); }) {
    return options.transposed();
  } else {
    return Options::kTransposed;
  }
}

template <class Options>
std::vector<int64_t> output_padding_of(const Options& options) {
  if constexpr (requires { options.output_padding(); }) {
    return is_transposed(options) ? list_of(options.output_padding()) : std::vector<int64_t>{};
  } else {
    return {};
  }
}

/// A module's tensor as it is when it is asked for; none for one that is not there.
template <class Module>
std::function<at::Tensor()> tensor_of(const std::shared_ptr<Module>& module, at::Tensor& tensor) {
  // The tensor is the module's own, which the function keeps.
  return tensor.defined() ? std::function<at::Tensor()>([module, &tensor] { return tensor; }) : nullptr;
}

}  // namespace detail

template <class Convolution>
Value ChainBuilder::convolution(Value input, const torch::nn::ModuleHolder<Convolution>& layer) {
  const auto& module = layer.ptr();
  const auto& options = module->options;
  return add_convolution(
      input, [module] { return module->weight; }, detail::tensor_of(module, module->bias),
      {detail::list_of(options.stride()), detail::padding_of(options), detail::list_of(options.dilation()),
       options.groups(), detail::is_transposed(options), detail::output_padding_of(options)});
}

template <class Linear>
Value ChainBuilder::linear(Value input, const torch::nn::ModuleHolder<Linear>& layer) {
  const auto& module = layer.ptr();
  return add_linear(
      input, [module] { return module->weight; }, detail::tensor_of(module, module->bias));
}

template <class Norm>
Value ChainBuilder::norm(Value input, const torch::nn::ModuleHolder<Norm>& layer) {
  const auto& module = layer.ptr();
  const auto& options = module->options;
  NormOptions of_norm{options.momentum(), options.eps(), std::nullopt,
                      [module] { return module->is_training() || !module->options.track_running_stats(); }};
  if constexpr (requires { module->group_name; }) {
    // It takes those of its own batch in evaluation, which no step does that has a group.
    TORCH_CHECK_VALUE(options.track_running_stats(), "Chain: a SyncBatchNorm must track running statistics");
    of_norm.group_name = module->group_name;
  }
  NormTensors tensors;
  if (options.affine()) {
    tensors.weight = [module] { return module->weight; };
    tensors.bias = [module] { return module->bias; };
  }
  if (options.track_running_stats()) {
    tensors.running_mean = [module] { return module->running_mean; };
    tensors.running_var = [module] { return module->running_var; };
    tensors.num_batches_tracked = [module] { return module->num_batches_tracked; };
  }
  return add_norm(input, std::move(tensors), std::move(of_norm));
}

template <class Norm>
Value ChainBuilder::layer_norm(Value input, const torch::nn::ModuleHolder<Norm>& layer) {
  const auto& module = layer.ptr();
  return add_layer_norm(input, detail::tensor_of(module, module->weight), detail::tensor_of(module, module->bias),
                        static_cast<int64_t>(module->options.normalized_shape().size()), module->options.eps());
}

}  // namespace actnn::nn
