#pragma once

#include <c10/util/Exception.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/pimpl.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actnn/nn/conversion_report.h"
#include "actnn/ops/quantization.h"
#include "actnn/policy/policy.h"

namespace actnn::nn {

struct ConversionOptions {
  /// Of the activations that the converted layers save.
  Quantization quantization{};

  /// Chooses instead, if there is one: its configuration says which layers are converted and how activations are kept
  /// (`actnn/policy/config.h`).
  c10::intrusive_ptr<Policy> policy{};

  /// Paths, as in state dictionaries ("layer1.0.conv1"), of modules to leave alone, with everything below them. A path
  /// that the tree does not have is an error.
  std::vector<std::string> skip{};

  /// Modules for which it returns true are left alone, with everything below them.
  std::function<bool(const std::string& path, const torch::nn::Module& module)> skip_if{};

  /// Layers in a row in a Sequential run as chains. False: each runs by itself.
  bool chains = true;
};

/// Replaces the torch layers of a tree by those of `actnn::nn`, in place: elements of Sequential, ModuleList and
/// ModuleDict, at any depth, also in containers that user-defined modules hold.
///
/// A converted layer works on the very tensors of the layer that it replaces, so that optimizers, tied parameters and
/// saved archives stay valid; device, type, `requires_grad` and training mode stay as they are, and no random number is
/// drawn. A layer used in two places is converted once and stays shared. Forward computes what it did, bit for bit (but
/// for dropout's mask, and for chains while a gradient is recorded, which round otherwise).
///
/// Chains (nn/chain.h): layers that stand in a row in a `torch::nn::Sequential` run together, as one node of autograd
/// that saves less than they do by themselves. Convolutions (also transposed ones, with padding by zeros), batch norms,
/// MaxPool2d, ReLU, ReLU6, LeakyReLU, SiLU, GELU, Sigmoid, Tanh and Dropout are in chains with each other; and so are
/// linear layers, layer norms, batch norms, those activations and Dropout. Children, names, types, archives, modes and
/// clones are those of the layers; only the Sequential's forward notices. Layers run one by one, as without chains,
/// where no gradient is recorded, for inputs that are not float32, float16 or bfloat16 of the layers' rank, under
/// autocast unless a product comes first and no layer norm follows, and where a policy chooses, the layers'
/// quantizations differ, have 1 bit or groups of their own. Options of layers may change at any time; chains follow.
/// Classes that derive from Sequential get no chains, for they may call their elements one by one. So may other code:
/// `*sequential->begin()` and the like give what calls elements as forward does, and for an element in a chain that is
/// an error, which names `actnn::nn::UnfinishedChain`, and never a wrong result. Use `sequential->ptr(i)`, or convert
/// with `chains` false.
///
/// C++ gives no access to a layer that a module holds as a typed member: it is left alone, and the report says so. Code
/// that fetches an element of a container by its type (`list->ptr<torch::nn::Conv2dImpl>(0)`) must ask for the new type
/// afterwards.
///
/// Returns the report on every module of the tree, the root included. Raises an error, before anything is changed, when
/// `options` are invalid. Not thread-safe with respect to other users of the tree.
ConversionReport convert(torch::nn::Module& root, const ConversionOptions& options = {});

/// The same for the module that a pointer or a holder (`Sequential`, `Net`) refers to.
template <typename ModuleType>
ConversionReport convert(const std::shared_ptr<ModuleType>& root, const ConversionOptions& options = {}) {
  TORCH_CHECK_VALUE(root != nullptr, "actnn::nn::convert: root must be a module, got a null pointer");
  return convert(static_cast<torch::nn::Module&>(*root), options);
}
template <typename ModuleType>
ConversionReport convert(const torch::nn::ModuleHolder<ModuleType>& root, const ConversionOptions& options = {}) {
  return convert(root.ptr(), options);
}

/// The same where the root itself may be a layer: `root` then holds the converted layer.
ConversionReport convert(torch::nn::AnyModule& root, const ConversionOptions& options = {});

}  // namespace actnn::nn
