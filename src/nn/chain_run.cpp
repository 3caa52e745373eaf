#include "src/nn/chain_run.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "actnn/nn/dropout.h"
#include "actnn/nn/quantized_module.h"
#include "src/nn/chain_layers.h"
#include "src/nn/layer_registry.h"
#include "src/nn/parameters.h"

namespace actnn::nn {
namespace {

ChainSignature signature_of(const ChainLayers& layers) {
  ChainSignature signature;
  for (const auto& layer : layers) {
    find_chain_layer(*layer)->describe(*layer, signature);
    if (auto* quantized = layer->as<QuantizedModule>()) {
      const Quantization& quantization = quantized->quantization();
      for (const int64_t number :
           {quantization.bits, quantization.group_size, static_cast<int64_t>(quantization.rounding),
            static_cast<int64_t>(quantized->scheme() != nullptr)}) {
        signature.numbers.push_back(static_cast<double>(number));
      }
    }
  }
  return signature;
}

bool same(const Quantization& first, const Quantization& second) {
  return first.bits == second.bits && first.group_size == second.group_size && first.rounding == second.rounding;
}

/// Of the layers that have one.
const Quantization* quantization_of(const ChainLayers& layers) {
  for (const auto& layer : layers) {
    if (auto* quantized = layer->as<QuantizedModule>()) {
      return &quantized->quantization();
    }
  }
  return nullptr;
}

/// Why layers in a row are no chain; empty if they are one.
std::string why_no_chain(const ChainLayers& layers) {
  ChainLayers before;
  bool has_purpose = false;
  for (const auto& layer : layers) {
    std::string reason = why_in_no_chain(*layer);
    if (reason.empty()) {
      reason = why_not_behind(before, *layer);
    }
    if (!reason.empty()) {
      return reason;
    }
    has_purpose = has_purpose || find_chain_layer(*layer)->is_product_or_norm;
    before.push_back(layer);
  }
  return has_purpose ? "" : "a chain must have a layer with weights or a norm";
}

Chain make_chain(const ChainLayers& layers) {
  const std::string reason = why_no_chain(layers);
  TORCH_CHECK_VALUE(reason.empty(), "Chain: ", reason);
  ChainBuilder builder;
  Value value = builder.input();
  for (const auto& layer : layers) {
    value = find_chain_layer(*layer)->add(builder, value, layer);
  }
  blocks::PlanOptions options;
  if (const Quantization* quantization = quantization_of(layers)) {
    options = blocks::PlanOptions::of_bits(quantization->bits);
    options.rounding = quantization->rounding;
  }
  return builder.build(options);
}

/// Whether the chain gets the input, and computes what the layers would.
bool takes(const ChainLayers& layers, const at::Tensor& input) {
  if (!at::GradMode::is_enabled() || !input.defined() || input.layout() != at::kStrided || input.is_nested() ||
      !(input.is_cpu() || input.is_cuda()) || !is_compressible(input.scalar_type()) || input.dim() < 2 ||
      input.numel() == 0) {
    return false;
  }
  ChainInput reaching{.sizes = input.sizes().vec(),
                      .dtype = input.scalar_type(),
                      .is_autocast = at::autocast::is_autocast_enabled(input.device().type()),
                      .wants_gradient = input.requires_grad()};
  for (const auto& layer : layers) {
    if (!find_chain_layer(*layer)->pass(*layer, reaching)) {
      return false;
    }
    reaching.is_first = false;
  }
  return reaching.wants_gradient;
}

}  // namespace

std::string why_in_no_chain(torch::nn::Module& layer) {
  const ChainLayer* kind = find_chain_layer(layer);
  if (kind == nullptr) {
    return type_name(layer) + " has no part in chains";
  }
  if (auto* quantized = layer.as<QuantizedModule>()) {
    if (quantized->scheme()) {
      return "a policy says how it saves its activation";
    }
    const Quantization& quantization = quantized->quantization();
    if (quantization.bits < 2) {
      return "chains have copies of 2 bits or more";
    }
    if (quantization.group_size != kDefaultGroupSize) {
      return "chains have groups of " + std::to_string(kDefaultGroupSize) + " elements";
    }
  }
  return kind->why_not(layer);
}

std::string why_not_behind(const ChainLayers& layers, torch::nn::Module& layer) {
  const ChainLayer& kind = *find_chain_layer(layer);
  // In evaluation a dropout's output is its input.
  const auto is_dropout = [](const auto& before) { return before->template as<DropoutImpl>() != nullptr; };
  if (kind.is_in_place(layer) && std::all_of(layers.begin(), layers.end(), is_dropout)) {
    return "it works in place on what others may read";
  }
  for (const auto& before : layers) {
    const ChainFamily family = find_chain_layer(*before)->family;
    if (kind.family != ChainFamily::kAny && family != ChainFamily::kAny && kind.family != family) {
      return type_name(layer) + " and " + type_name(*before) + " are in no chain together";
    }
    if (before.get() == &layer && kind.is_product_or_norm) {
      return "the layer is in the chain already";
    }
  }
  auto* quantized = layer.as<QuantizedModule>();
  const Quantization* quantization = quantization_of(layers);
  if (quantized != nullptr && quantization != nullptr && !same(quantized->quantization(), *quantization)) {
    return "its quantization is not that of the layers before it";
  }
  return "";
}

ChainRun::ChainRun(const ChainLayers& layers)
    : made_{.layers = layers, .signature = signature_of(layers), .chain = make_chain(layers)} {}

at::Tensor ChainRun::forward(const UnfinishedChain& unfinished) {
  if (takes(unfinished.layers, unfinished.input)) {
    if (const Chain chain = chain_of(unfinished.layers)) {
      return chain.forward(unfinished.input);
    }
  }
  at::Tensor value = unfinished.input;
  for (const auto& layer : unfinished.layers) {
    value = find_chain_layer(*layer)->forward(*layer, value);
  }
  return value;
}

Chain ChainRun::chain() const {
  const std::lock_guard lock(mutex_);
  return made_.chain;
}

Chain ChainRun::chain_of(const ChainLayers& layers) {
  ChainSignature signature = signature_of(layers);
  const std::lock_guard lock(mutex_);
  if (made_.layers != layers || made_.signature != signature) {
    made_ = make(layers, std::move(signature));
  }
  return made_.chain;
}

ChainRun::Made ChainRun::make(const ChainLayers& layers, ChainSignature signature) {
  Made made{.layers = layers, .signature = std::move(signature), .chain = {}};
  try {
    made.chain = make_chain(layers);
  } catch (const c10::ValueError&) {
    // Layers whose options have changed, or elements that were put together anew: they run one by one.
  }
  return made;
}

}  // namespace actnn::nn
