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
};

/// Replaces the torch layers of a tree by those of `actnn::nn`, in place: elements of Sequential, ModuleList and
/// ModuleDict, at any depth, also in containers that user-defined modules hold.
///
/// A converted layer works on the very tensors of the layer that it replaces, so that optimizers, tied parameters and
/// saved archives stay valid; device, type, `requires_grad` and training mode stay as they are, and no random number is
/// drawn. A layer used in two places is converted once and stays shared. Forward computes what it did, bit for bit (but
/// for dropout's mask).
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
