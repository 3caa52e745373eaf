#include "actnn/nn/convert.h"

#include <torch/nn/modules/container/functional.h>
#include <torch/nn/modules/container/moduledict.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "actnn/nn/quantized_module.h"
#include "src/nn/convert_chains.h"
#include "src/nn/layer_registry.h"
#include "src/nn/parameters.h"

namespace actnn::nn {
namespace {

using torch::nn::AnyModule;
using torch::nn::Module;

/// The elements of a module that is a container: children that can be replaced, because nobody knows their type
/// statically.
class Elements {
 public:
  explicit Elements(Module& parent)
      : sequential_(parent.as<torch::nn::SequentialImpl>()),
        list_(parent.as<torch::nn::ModuleListImpl>()),
        dict_(parent.as<torch::nn::ModuleDictImpl>()) {
    for_each([&](const Module* element, const auto&) { pointers_.insert(element); });
  }

  bool is_container() const { return sequential_ || list_ || dict_; }
  bool contains(const Module& module) const { return pointers_.contains(&module); }

  /// Replaces every occurrence of `original` among the elements; what is registered with the parent is not touched.
  void replace(const Module& original, const AnyModule& replacement) {
    for_each([&](const Module* element, const auto& assign) {
      if (element == &original) {
        assign(replacement);
      }
    });
  }

 private:
  template <class Function>
  void for_each(const Function& function) {
    if (sequential_) {
      for (AnyModule& element : *sequential_) {
        function(element.ptr().get(), [&](const AnyModule& replacement) { element = replacement; });
      }
    }
    if (list_) {
      for (auto& element : *list_) {
        function(element.get(), [&](const AnyModule& replacement) { element = replacement.ptr(); });
      }
    }
    if (dict_) {
      for (auto& item : *dict_) {
        function(item.value().get(), [&](const AnyModule& replacement) { item.value() = replacement.ptr(); });
      }
    }
  }

  torch::nn::SequentialImpl* sequential_;
  torch::nn::ModuleListImpl* list_;
  torch::nn::ModuleDictImpl* dict_;
  std::unordered_set<const Module*> pointers_;
};

/// Torch's modules that save nothing large for backward.
bool saves_no_activation(std::string_view type) {
  constexpr std::string_view kTypes[] = {
      "torch::nn::ConstantPad1d", "torch::nn::ConstantPad2d", "torch::nn::ConstantPad3d", "torch::nn::Flatten",
      "torch::nn::Fold",          "torch::nn::Identity",      "torch::nn::PixelShuffle",  "torch::nn::PixelUnshuffle",
      "torch::nn::Unflatten",     "torch::nn::Unfold",        "torch::nn::Upsample",      "torch::nn::ZeroPad1d",
      "torch::nn::ZeroPad2d",     "torch::nn::ZeroPad3d"};
  return std::find(std::begin(kTypes), std::end(kTypes), type) != std::end(kTypes);
}

/// Why a policy's configuration leaves a layer alone; empty if it does not.
std::string why_not_configured(const LayerConversion& conversion, const Config& config) {
  if (!config.compress_activation && !config.swap) {
    return "the configuration neither compresses nor swaps activations";
  }
  if (!config.enable_quantized_bn && conversion.torch_type.starts_with("torch::nn::BatchNorm")) {
    return "enable_quantized_bn is off";
  }
  return "";
}

/// Why a module without a compressed form has none.
std::string why_no_conversion(const Module& module) {
  const std::string type = type_name(module);
  if (is_compressed(module)) {
    return "already compressed";
  }
  if (module.as<torch::nn::FunctionalImpl>()) {
    return "torch::nn::Functional hides the function that it calls; use a module of actnn::nn, such as actnn::nn::ReLU";
  }
  if (saves_no_activation(type)) {
    return type + " saves no activation for backward";
  }
  if (const LayerConversion* base = find_base_conversion(module)) {
    return type + " derives from " + base->torch_type + " and may compute something else";
  }
  if (type.starts_with("torch::nn::")) {
    return type + " has no compressed form";
  }
  return "a user-defined module; what it computes is not known";
}

std::string dtype_name(at::ScalarType dtype) { return dtype == at::kDouble ? "float64" : c10::toString(dtype); }

/// Why this instance of a torch layer that has a compressed form cannot get it; empty if it can.
std::string why_not_convertible(const Module& layer, const LayerConversion& conversion) {
  const auto foreign = [&](const std::string& what, const std::string& name) {
    return "it has a " + what + " '" + name + "', which " + conversion.torch_type + " does not have";
  };
  for (const auto& parameter : layer.named_parameters(/*recurse=*/false)) {
    if (parameter.key() != "weight" && parameter.key() != "bias") {
      return foreign("parameter", parameter.key());
    }
    if (!is_compressible(parameter->scalar_type())) {
      return dtype_name(parameter->scalar_type()) + " weights are not supported, only float32, float16 and bfloat16";
    }
  }
  for (const auto& buffer : layer.named_buffers(/*recurse=*/false)) {
    if (buffer.key() != "running_mean" && buffer.key() != "running_var" && buffer.key() != "num_batches_tracked") {
      return foreign("buffer", buffer.key());
    }
    if (buffer->is_floating_point() && !is_compressible(buffer->scalar_type())) {
      return dtype_name(buffer->scalar_type()) + " statistics are not supported, only float32, float16 and bfloat16";
    }
  }
  const auto children = layer.named_children();
  return children.is_empty() ? "" : foreign("child", children.front().key());
}

std::string join(const std::string& path, const std::string& name) { return path.empty() ? name : path + "." + name; }

class Converter {
 public:
  Converter(const ConversionOptions& options, const Module& root) : options_(options) {
    check_quantization("actnn::nn::convert", options.quantization);
    const auto modules = root.named_modules(/*name_prefix=*/"", /*include_self=*/false);
    for (const std::string& path : options.skip) {
      TORCH_CHECK_VALUE(modules.contains(path), "actnn::nn::convert: skip must name modules of the tree, got '", path,
                        "'");
    }
  }

  ConversionReport convert_below(Module& root) {
    if (const LayerConversion* conversion = find_conversion(root)) {
      leave_alone("", root,
                  "the root itself cannot be replaced through a reference; convert the container or AnyModule that "
                  "holds it, or use " +
                      conversion->type);
    } else if (!skip("", root)) {
      traverse("", root);
    }
    return std::move(report_);
  }

  ConversionReport convert_any(AnyModule& root) {
    const auto module = root.ptr();
    if (!find_conversion(*module)) {
      return convert_below(*module);
    }
    if (!skip("", *module)) {
      if (const AnyModule* replacement = convert_layer("", module)) {
        root = *replacement;
      }
    }
    return std::move(report_);
  }

 private:
  struct Converted {
    std::shared_ptr<Module> original;  // kept alive: its address is a key
    AnyModule replacement;
    std::string path;
  };

  void leave_alone(const std::string& path, const Module& module, const std::string& reason) {
    report_.entries.push_back({path, type_name(module), ConversionOutcome::kLeftAlone, "", reason});
  }

  /// Reports a module and everything below it, if it is to be skipped.
  bool skip(const std::string& path, const Module& module) {
    const bool named = std::find(options_.skip.begin(), options_.skip.end(), path) != options_.skip.end();
    if (!named && !(options_.skip_if && options_.skip_if(path, module))) {
      return false;
    }
    leave_alone(path, module, named ? "skipped by name" : "skipped by skip_if");
    skipped_.insert(&module);
    for (const auto& below : module.named_modules(path, /*include_self=*/false)) {
      leave_alone(below.key(), *below.value(), "skipped with '" + path + "'");
      skipped_.insert(below.value().get());
    }
    return true;
  }

  /// A module without a compressed form.
  void traverse(const std::string& path, Module& module) {
    Elements elements(module);
    const auto children = module.named_children();
    if (children.is_empty() && !elements.is_container()) {
      leave_alone(path, module, why_no_conversion(module));
      return;
    }
    const auto [visited, first_time] = visited_.emplace(&module, path);
    const std::string remark = first_time ? "" : "the same as '" + visited->second + "'";
    report_.entries.push_back({path, type_name(module), ConversionOutcome::kTraversed, "", remark});
    if (first_time) {
      for (const auto& child : children) {
        visit(path, module, elements, child.key(), child.value());
      }
      if (auto* sequential = module.as<torch::nn::SequentialImpl>(); sequential != nullptr && options_.chains) {
        for (ChainEntry& entry : make_chains(path, *sequential, skipped_)) {
          report_.chains.push_back(std::move(entry));
        }
      }
    }
  }

  void visit(const std::string& parent_path, Module& parent, Elements& elements, const std::string& name,
             const std::shared_ptr<Module>& child) {
    const std::string path = join(parent_path, name);
    if (skip(path, *child)) {
      return;
    }
    const LayerConversion* conversion = find_conversion(*child);
    if (!conversion) {
      traverse(path, *child);
    } else if (!elements.contains(*child)) {
      leave_alone(
          path, *child,
          "held as a typed member of " + type_name(parent) + "; hold it in a Sequential or use " + conversion->type);
    } else if (const AnyModule* replacement = convert_layer(path, child)) {
      elements.replace(*child, *replacement);
      parent.replace_module(name, replacement->ptr());
    }
  }

  /// The compressed form of a layer, or none if it has to be left alone. Reports either.
  const AnyModule* convert_layer(const std::string& path, const std::shared_ptr<Module>& layer) {
    auto found = converted_.find(layer.get());
    const bool shared = found != converted_.end();
    if (!shared) {
      const LayerConversion& conversion = *find_conversion(*layer);
      std::string reason = why_not_convertible(*layer, conversion);
      if (reason.empty() && options_.policy) {
        reason = why_not_configured(conversion, options_.policy->config());
      }
      if (!reason.empty()) {
        leave_alone(path, *layer, reason);
        return nullptr;
      }
      AnyModule replacement = conversion.build(*layer, options_.quantization);
      if (auto* quantized = replacement.ptr()->as<QuantizedModule>(); quantized && options_.policy) {
        if (!options_.policy->config().compress_activation && !quantized->follows_policy()) {
          leave_alone(path, *layer, "the configuration does not compress, and such layers have no exact form to swap");
          return nullptr;
        }
        quantized->set_policy(options_.policy, /*group=*/0, path);
      }
      found = converted_.emplace(layer.get(), Converted{layer, std::move(replacement), path}).first;
    }
    const Converted& converted = found->second;
    report_.entries.push_back({path, type_name(*layer), ConversionOutcome::kConverted,
                               type_name(*converted.replacement.ptr()),
                               shared ? "the same as '" + converted.path + "'" : ""});
    return &converted.replacement;
  }

  const ConversionOptions& options_;
  ConversionReport report_;
  std::unordered_map<const Module*, Converted> converted_;
  std::unordered_map<const Module*, std::string> visited_;  // containers and where they were first met
  std::unordered_set<const Module*> skipped_;
};

}  // namespace

ConversionReport convert(Module& root, const ConversionOptions& options) {
  return Converter(options, root).convert_below(root);
}

ConversionReport convert(AnyModule& root, const ConversionOptions& options) {
  return Converter(options, *root.ptr()).convert_any(root);
}

}  // namespace actnn::nn
