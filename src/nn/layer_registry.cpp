#include "src/nn/layer_registry.h"

#include <c10/util/Type.h>

#include <string_view>
#include <type_traits>
#include <typeindex>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>

#include "actnn/nn/activation.h"
#include "actnn/nn/batch_norm.h"
#include "actnn/nn/convolution.h"
#include "actnn/nn/dropout.h"
#include "actnn/nn/embedding.h"
#include "actnn/nn/linear.h"
#include "actnn/nn/normalization.h"
#include "actnn/nn/pooling.h"
#include "actnn/nn/softmax.h"

namespace actnn::nn {
namespace {

std::string without_impl(std::string name) {
  constexpr std::string_view kSuffix = "Impl";
  if (name.ends_with(kSuffix)) {
    name.resize(name.size() - kSuffix.size());
  }
  return name;
}

template <class Module>
std::string name_of() {
  return without_impl(c10::demangle(typeid(Module).name()));
}

template <class Layer>
torch::nn::AnyModule build(const torch::nn::Module& source, const Quantization& quantization) {
  using TorchLayer = typename Layer::TorchLayer;
  const auto& layer = dynamic_cast<const TorchLayer&>(source);
  if constexpr (std::is_constructible_v<Layer, const TorchLayer&, const Quantization&>) {
    return torch::nn::AnyModule(std::make_shared<Layer>(layer, quantization));
  } else {
    return torch::nn::AnyModule(std::make_shared<Layer>(layer));
  }
}

template <class TorchLayer>
bool derives(const torch::nn::Module& module) {
  return dynamic_cast<const TorchLayer*>(&module) != nullptr;
}

struct Registry {
  std::unordered_map<std::type_index, LayerConversion> conversions;  // by the torch type
  std::unordered_set<std::type_index> layers;                        // of actnn::nn
};

template <class... Layers>
Registry make_registry() {
  return {{{typeid(typename Layers::TorchLayer),
            {&build<Layers>, &derives<typename Layers::TorchLayer>, name_of<typename Layers::TorchLayer>(),
             name_of<Layers>()}}...},
          {typeid(Layers)..., typeid(SyncBatchNormImpl)}};  // of which torch's C++ library has no counterpart
}

const Registry& registry() {
  static const Registry kRegistry =
      make_registry<Conv1dImpl, Conv2dImpl, Conv3dImpl, ConvTranspose1dImpl, ConvTranspose2dImpl, ConvTranspose3dImpl,
                    LinearImpl, EmbeddingImpl, BatchNorm1dImpl, BatchNorm2dImpl, BatchNorm3dImpl, LayerNormImpl,
                    GroupNormImpl, InstanceNorm1dImpl, InstanceNorm2dImpl, InstanceNorm3dImpl, ReLUImpl, ReLU6Impl,
                    LeakyReLUImpl, HardtanhImpl, PReLUImpl, GELUImpl, SiLUImpl, SigmoidImpl, TanhImpl, SoftmaxImpl,
                    Softmax2dImpl, LogSoftmaxImpl, DropoutImpl, MaxPool1dImpl, MaxPool2dImpl, MaxPool3dImpl,
                    AvgPool1dImpl, AvgPool2dImpl, AvgPool3dImpl, AdaptiveAvgPool1dImpl, AdaptiveAvgPool2dImpl,
                    AdaptiveAvgPool3dImpl>();
  return kRegistry;
}

}  // namespace

const LayerConversion* find_conversion(const torch::nn::Module& module) {
  const auto found = registry().conversions.find(typeid(module));
  return found == registry().conversions.end() ? nullptr : &found->second;
}

const LayerConversion* find_base_conversion(const torch::nn::Module& module) {
  for (const auto& [type, conversion] : registry().conversions) {
    if (conversion.derives(module)) {
      return &conversion;
    }
  }
  return nullptr;
}

bool is_compressed(const torch::nn::Module& module) { return registry().layers.contains(typeid(module)); }

std::string type_name(const torch::nn::Module& module) { return without_impl(c10::demangle(typeid(module).name())); }

}  // namespace actnn::nn
