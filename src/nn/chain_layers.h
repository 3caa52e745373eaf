#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "actnn/nn/chain.h"
#include "src/nn/chain_run.h"
#include "src/nn/chained_layer.h"

/// \file
/// Which layers of actnn::nn can be in chains, and how.

namespace actnn::nn {

/// Layers of two families are in no chain together.
enum class ChainFamily : int8_t {
  kAny,
  kChannels,  ///< of [N, C, ...]: convolutions, pools
  kFeatures,  ///< of [..., features]: linear layers, layer norms
};

/// What reaches a layer in a chain.
struct ChainInput {
  /// Behind convolutions and pools the extents of space are those of the input.
  std::vector<int64_t> sizes;
  at::ScalarType dtype;
  bool is_autocast;
  bool wants_gradient;  ///< of the chain's input or of a parameter up to here
  bool is_first = true;
};

/// Layers of one type.
struct ChainLayer {
  ChainFamily family;
  bool is_product_or_norm;
  /// Why its options allow no chain; empty if they do.
  std::string (*why_not)(const torch::nn::Module& layer);
  bool (*is_in_place)(const torch::nn::Module& layer);
  void (*describe)(const torch::nn::Module& layer, ChainSignature& signature);
  /// Whether a chain computes what the layer does of such an input, which becomes the output.
  bool (*pass)(const torch::nn::Module& layer, ChainInput& input);
  Value (*add)(ChainBuilder& builder, Value input, const std::shared_ptr<torch::nn::Module>& layer);
  at::Tensor (*forward)(torch::nn::Module& layer, const at::Tensor& input);
  torch::nn::AnyModule (*make_part)(const std::shared_ptr<torch::nn::Module>& layer, const ChainPlace& place);
};

/// That of the module's exact type, or none.
const ChainLayer* find_chain_layer(const torch::nn::Module& module);

}  // namespace actnn::nn
