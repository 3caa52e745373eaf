#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "actnn/nn/chain.h"

namespace actnn::nn {

using ChainLayers = std::vector<std::shared_ptr<torch::nn::Module>>;

/// What the elements of a Sequential hand on from the first layer of a chain to the last: none of them has run yet.
/// Whoever calls elements one by one sees it in error messages.
struct UnfinishedChain {
  at::Tensor input;
  ChainLayers layers;
};

/// Options that a chain was made with. Once a layer has others, the chain is made again.
struct ChainSignature {
  std::vector<double> numbers;
  std::vector<std::string> names;

  bool operator==(const ChainSignature&) const = default;
};

/// Runs layers as a chain where it computes what they do, else one by one: without a gradient, where there is nothing
/// to save; for inputs of other dtypes or sizes than the layers and chains take; and where the layers' options allow no
/// chain. Safe to use from several threads.
class ChainRun {
 public:
  /// The chain is made when forward is first called.
  ChainRun() = default;
  /// The chain is made now. Throws c10::ValueError where it cannot be.
  explicit ChainRun(const ChainLayers& layers);

  at::Tensor forward(const UnfinishedChain& unfinished);

  /// That of the last forward that used one.
  Chain chain() const;

 private:
  struct Made {
    ChainLayers layers;
    ChainSignature signature;
    Chain chain;  ///< none: there can be none
  };

  static Made make(const ChainLayers& layers, ChainSignature signature);
  Chain chain_of(const ChainLayers& layers);

  mutable std::mutex mutex_;
  Made made_;
};

/// Why a layer can be in no chain, whatever is beside it; empty if it can.
std::string why_in_no_chain(torch::nn::Module& layer);

/// Why a layer cannot follow others in one chain; empty if it can. All can be in chains.
std::string why_not_behind(const ChainLayers& layers, torch::nn::Module& layer);

}  // namespace actnn::nn
