#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/any.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "src/nn/chain_run.h"

/// \file
/// Elements of a Sequential that are parts of a chain. Each holds its layer and gives it to all who ask, as any element
/// does. But in forward, where the result of one element is the next one's argument, they hand on what they are given,
/// and themselves, until the last one runs the chain. So they need not know each other: elements may be copied and
/// cloned, and the Sequential is none of their business.

namespace actnn::nn {

/// Where in its chain a layer stands.
struct ChainPlace {
  bool is_first = false;
  std::shared_ptr<ChainRun> run = nullptr;  ///< of the last layer
};

/// What `AnyModule` is given to make an element of.
template <class Layer>
struct ChainedLayer : torch::nn::Module {
  ChainedLayer(std::shared_ptr<Layer> layer_, ChainPlace place_) : layer(std::move(layer_)), place(std::move(place_)) {}

  at::Tensor forward(at::Tensor input) { return layer->forward(std::move(input)); }

  std::shared_ptr<Layer> layer;
  ChainPlace place;
};

namespace detail {

template <class Layer, class Forward>
struct HolderOf;
template <class Layer, class Class, class... Arguments>
struct HolderOf<Layer, at::Tensor (Class::*)(Arguments...)> {
  using Holder = torch::nn::AnyModuleHolder<Layer, Arguments...>;
};

/// What `AnyModule` holds a layer by.
template <class Layer>
using LayerHolder = typename HolderOf<Layer, decltype(&Layer::forward)>::Holder;

}  // namespace detail

}  // namespace actnn::nn

/// The holder of the layer itself, so that `AnyModule::get` and `AnyModule::ptr` find it; only forward is another.
template <class Layer>
struct torch::nn::AnyModuleHolder<actnn::nn::ChainedLayer<Layer>, at::Tensor> : actnn::nn::detail::LayerHolder<Layer> {
  using Base = actnn::nn::detail::LayerHolder<Layer>;

  explicit AnyModuleHolder(std::shared_ptr<actnn::nn::ChainedLayer<Layer>>&& part)
      : Base(std::shared_ptr<Layer>(part->layer)), place(part->place) {}

  AnyValue forward(std::vector<AnyValue>&& arguments) override {
    if (arguments.size() == 1) {
      if (auto* chain = arguments[0].template try_get<actnn::nn::UnfinishedChain>()) {
        return proceed(std::move(*chain));
      }
      if (auto* input = arguments[0].template try_get<at::Tensor>(); input && place.is_first) {
        return proceed({std::move(*input), {}});
      }
    }
    return Base::forward(std::move(arguments));
  }

  std::unique_ptr<AnyModulePlaceholder> copy() const override { return std::make_unique<AnyModuleHolder>(*this); }

  std::unique_ptr<AnyModulePlaceholder> clone_module(std::optional<Device> device) const override {
    auto clone = std::make_unique<AnyModuleHolder>(*this);
    clone->module = std::dynamic_pointer_cast<Layer>(this->module->clone(device));
    if (place.run) {
      clone->place.run = std::make_shared<actnn::nn::ChainRun>();
    }
    return clone;
  }

  actnn::nn::ChainPlace place;

 private:
  AnyValue proceed(actnn::nn::UnfinishedChain chain) {
    chain.layers.push_back(this->module);
    return place.run ? AnyValue(place.run->forward(chain)) : AnyValue(std::move(chain));
  }
};
