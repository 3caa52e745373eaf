#include "src/nn/chain_layers.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <type_traits>
#include <typeindex>
#include <typeinfo>
#include <unordered_map>
#include <utility>
#include <variant>

#include "actnn/nn/activation.h"
#include "actnn/nn/batch_norm.h"
#include "actnn/nn/convolution.h"
#include "actnn/nn/dropout.h"
#include "actnn/nn/linear.h"
#include "actnn/nn/normalization.h"
#include "actnn/nn/pooling.h"
#include "src/nn/parameters.h"

namespace actnn::nn {
namespace {

using torch::nn::Module;

template <class... Numbers>
void describe_numbers(ChainSignature& signature, Numbers... numbers) {
  (signature.numbers.push_back(static_cast<double>(numbers)), ...);
}

void describe_list(ChainSignature& signature, const std::vector<int64_t>& list) {
  signature.numbers.insert(signature.numbers.end(), list.begin(), list.end());
}

/// Whether tensors have the type of what reaches a layer, which nothing casts but autocast.
bool have_its_dtype(ChainInput& input, std::initializer_list<const at::Tensor*> parameters) {
  return std::all_of(parameters.begin(), parameters.end(), [&](const at::Tensor* parameter) {
    if (!parameter->defined()) {
      return true;
    }
    input.wants_gradient = input.wants_gradient || parameter->requires_grad();
    return input.is_autocast ? is_compressible(parameter->scalar_type()) : parameter->scalar_type() == input.dtype;
  });
}

/// How layers of a type are parts of chains. What most of them have:
struct AnyRules {
  static constexpr ChainFamily kFamily = ChainFamily::kAny;
  static constexpr bool kIsProductOrNorm = false;
  static std::string why_not(const Module& /*layer*/) { return ""; }
  static bool is_in_place(const Module& /*layer*/) { return false; }
};

template <class Layer>
struct Rules;

// --- Products --------------------------------------------------------------------------------------------------------

template <class Layer>
requires requires { Layer::kTransposed; }
struct Rules<Layer> : AnyRules {
  static constexpr ChainFamily kFamily = ChainFamily::kChannels;
  static constexpr bool kIsProductOrNorm = true;

  static std::string why_not(const Layer& layer) {
    if (!std::holds_alternative<torch::enumtype::kZeros>(layer.options.padding_mode())) {
      return "chains pad by zeros";
    }
    if constexpr (!Layer::kTransposed) {
      if (layer.options.padding().index() != 0) {
        return "chains have paddings that are numbers";
      }
    }
    return "";
  }
  static void describe(const Layer& layer, ChainSignature& signature) {
    const auto& options = layer.options;
    describe_numbers(signature, options.groups(), layer.bias.defined(), options.padding_mode().index());
    describe_list(signature, detail::list_of(options.stride()));
    describe_list(signature, detail::list_of(options.dilation()));
    if constexpr (Layer::kTransposed) {
      describe_list(signature, detail::list_of(options.padding()));
      describe_list(signature, detail::list_of(options.output_padding()));
    } else {
      describe_numbers(signature, options.padding().index());
      if (const auto* padding = std::get_if<0>(&options.padding())) {
        describe_list(signature, detail::list_of(*padding));
      }
    }
  }
  static bool pass(const Layer& layer, ChainInput& input) {
    const at::Tensor& weight = layer.weight;
    const int64_t groups = layer.options.groups();
    const size_t rank = detail::list_of(layer.options.stride()).size() + 2;
    if (input.sizes.size() != rank || !weight.defined() || weight.dim() != static_cast<int64_t>(rank) ||
        input.sizes[1] != (Layer::kTransposed ? weight.size(0) : weight.size(1) * groups)) {
      return false;
    }
    input.sizes[1] = Layer::kTransposed ? weight.size(1) * groups : weight.size(0);
    return have_its_dtype(input, {&layer.weight, &layer.bias});
  }
  static Value add(ChainBuilder& builder, Value input, const std::shared_ptr<Layer>& layer) {
    return builder.convolution(input, torch::nn::ModuleHolder<Layer>(layer));
  }
};

template <>
struct Rules<LinearImpl> : AnyRules {
  static constexpr ChainFamily kFamily = ChainFamily::kFeatures;
  static constexpr bool kIsProductOrNorm = true;

  static void describe(const LinearImpl& layer, ChainSignature& signature) {
    describe_numbers(signature, layer.bias.defined());
  }
  static bool pass(const LinearImpl& layer, ChainInput& input) {
    const at::Tensor& weight = layer.weight;
    if (!weight.defined() || weight.dim() != 2 || input.sizes.back() != weight.size(1)) {
      return false;
    }
    input.sizes.back() = weight.size(0);
    return have_its_dtype(input, {&layer.weight, &layer.bias});
  }
  static Value add(ChainBuilder& builder, Value input, const std::shared_ptr<LinearImpl>& layer) {
    return builder.linear(input, Linear(layer));
  }
};

// --- Norms -----------------------------------------------------------------------------------------------------------

/// Whether a batch norm takes inputs of so many dimensions.
template <class Layer>
bool takes_rank(size_t rank) {
  if constexpr (std::is_same_v<Layer, BatchNorm1dImpl>) {
    return rank == 2 || rank == 3;
  } else if constexpr (std::is_same_v<Layer, BatchNorm2dImpl>) {
    return rank == 4;
  } else if constexpr (std::is_same_v<Layer, BatchNorm3dImpl>) {
    return rank == 5;
  } else {
    return rank >= 2;
  }
}

template <class Layer>
requires requires(Layer layer) { layer.num_batches_tracked; }
struct Rules<Layer> : AnyRules {
  static constexpr bool kIsProductOrNorm = true;

  static void describe(const Layer& layer, ChainSignature& signature) {
    const BatchNormOptions& options = layer.options;
    describe_numbers(signature, options.eps(), options.momentum().has_value(), options.momentum().value_or(0),
                     options.affine(), options.track_running_stats());
    if constexpr (requires { layer.group_name; }) {
      signature.names.push_back(layer.group_name);
    }
  }
  static bool pass(const Layer& layer, ChainInput& input) {
    if (!takes_rank<Layer>(input.sizes.size()) || input.sizes[1] != layer.options.num_features() ||
        (input.is_autocast && input.is_first)) {
      return false;
    }
    const bool affine = layer.options.affine();
    const bool tracks = layer.options.track_running_stats();
    if (layer.weight.defined() != affine || layer.bias.defined() != affine || layer.running_mean.defined() != tracks ||
        layer.running_var.defined() != tracks || layer.num_batches_tracked.defined() != tracks) {
      return false;
    }
    for (const at::Tensor* parameter : {&layer.weight, &layer.bias, &layer.running_mean, &layer.running_var}) {
      if (parameter->defined()) {
        input.wants_gradient = input.wants_gradient || parameter->requires_grad();
        const at::ScalarType dtype = parameter->scalar_type();
        if (parameter->numel() != layer.options.num_features() || (dtype != at::kFloat && dtype != input.dtype)) {
          return false;
        }
      }
    }
    return true;
  }
  static Value add(ChainBuilder& builder, Value input, const std::shared_ptr<Layer>& layer) {
    return builder.norm(input, torch::nn::ModuleHolder<Layer>(layer));
  }
};

template <>
struct Rules<LayerNormImpl> : AnyRules {
  static constexpr ChainFamily kFamily = ChainFamily::kFeatures;
  static constexpr bool kIsProductOrNorm = true;

  static void describe(const LayerNormImpl& layer, ChainSignature& signature) {
    describe_numbers(signature, layer.options.eps(), layer.options.normalized_shape().size(), layer.weight.defined(),
                     layer.bias.defined());
  }
  static bool pass(const LayerNormImpl& layer, ChainInput& input) {
    const std::vector<int64_t>& shape = layer.options.normalized_shape();
    return !input.is_autocast &&  // which makes its result float32
           shape.size() < input.sizes.size() && std::equal(shape.rbegin(), shape.rend(), input.sizes.rbegin()) &&
           have_its_dtype(input, {&layer.weight, &layer.bias});
  }
  static Value add(ChainBuilder& builder, Value input, const std::shared_ptr<LayerNormImpl>& layer) {
    return builder.layer_norm(input, LayerNorm(layer));
  }
};

// --- Others ----------------------------------------------------------------------------------------------------------

std::array<int64_t, 2> pair_of(const torch::ExpandingArray<2>& array) { return *array; }

template <>
struct Rules<MaxPool2dImpl> : AnyRules {
  static constexpr ChainFamily kFamily = ChainFamily::kChannels;

  static void describe(const MaxPool2dImpl& layer, ChainSignature& signature) {
    for (const auto* list :
         {&layer.options.kernel_size(), &layer.options.stride(), &layer.options.padding(), &layer.options.dilation()}) {
      describe_list(signature, detail::list_of(*list));
    }
    describe_numbers(signature, layer.options.ceil_mode());
  }
  static bool pass(const MaxPool2dImpl& /*layer*/, ChainInput& input) {
    return input.sizes.size() == 4 && !(input.is_autocast && input.is_first);
  }
  static Value add(ChainBuilder& builder, Value input, const std::shared_ptr<MaxPool2dImpl>& layer) {
    const auto& options = layer->options;
    return builder.max_pool(input, {.kernel_size = pair_of(options.kernel_size()),
                                    .stride = pair_of(options.stride()),
                                    .padding = pair_of(options.padding()),
                                    .dilation = pair_of(options.dilation()),
                                    .ceil_mode = options.ceil_mode()});
  }
};

template <>
struct Rules<DropoutImpl> : AnyRules {
  static bool is_in_place(const DropoutImpl& layer) { return layer.options.inplace(); }
  static void describe(const DropoutImpl& layer, ChainSignature& signature) {
    describe_numbers(signature, layer.options.p());
  }
  static bool pass(const DropoutImpl& /*layer*/, ChainInput& input) { return !(input.is_autocast && input.is_first); }
  static Value add(ChainBuilder& builder, Value input, const std::shared_ptr<DropoutImpl>& layer) {
    return builder.dropout(input, layer->options.p(), [layer] { return layer->is_training(); });
  }
};

struct Activation {
  ActivationKind kind;
  double slope = 0.01;
};
Activation activation_of(const ReLUImpl& /*layer*/) { return {ActivationKind::kReLU}; }
Activation activation_of(const ReLU6Impl& /*layer*/) { return {ActivationKind::kReLU6}; }
Activation activation_of(const LeakyReLUImpl& layer) {
  return {ActivationKind::kLeakyReLU, layer.options.negative_slope()};
}
Activation activation_of(const SiLUImpl& /*layer*/) { return {ActivationKind::kSiLU}; }
Activation activation_of(const SigmoidImpl& /*layer*/) { return {ActivationKind::kSigmoid}; }
Activation activation_of(const TanhImpl& /*layer*/) { return {ActivationKind::kTanh}; }
Activation activation_of(const GELUImpl& layer) {
  return {layer.options.approximate() == "tanh" ? ActivationKind::kGELUTanh : ActivationKind::kGELU};
}

template <class Layer>
requires requires(const Layer& layer) { activation_of(layer); }
struct Rules<Layer> : AnyRules {
  static std::string why_not(const Layer& layer) {
    if constexpr (std::is_same_v<Layer, GELUImpl>) {
      if (layer.options.approximate() != "none" && layer.options.approximate() != "tanh") {
        return "there is no such GELU";
      }
    }
    return "";
  }
  static bool is_in_place(const Layer& layer) {
    if constexpr (requires { layer.options.inplace(); }) {
      return layer.options.inplace();
    } else {
      return false;
    }
  }
  static void describe(const Layer& layer, ChainSignature& signature) {
    const Activation activation = activation_of(layer);
    describe_numbers(signature, static_cast<int>(activation.kind), activation.slope);
  }
  static bool pass(const Layer& /*layer*/, ChainInput& input) { return !(input.is_autocast && input.is_first); }
  static Value add(ChainBuilder& builder, Value input, const std::shared_ptr<Layer>& layer) {
    const Activation activation = activation_of(*layer);
    return builder.activation(input, activation.kind, activation.slope);
  }
};

// --- The table -------------------------------------------------------------------------------------------------------

template <class Layer>
ChainLayer chain_layer() {
  using Of = Rules<Layer>;
  return {
      .family = Of::kFamily,
      .is_product_or_norm = Of::kIsProductOrNorm,
      .why_not = [](const Module& module) { return Of::why_not(dynamic_cast<const Layer&>(module)); },
      .is_in_place = [](const Module& module) { return Of::is_in_place(dynamic_cast<const Layer&>(module)); },
      .describe = [](const Module& module,
                     ChainSignature& signature) { Of::describe(dynamic_cast<const Layer&>(module), signature); },
      .pass = [](const Module& module,
                 ChainInput& input) { return Of::pass(dynamic_cast<const Layer&>(module), input); },
      .add =
          [](ChainBuilder& builder, Value input, const std::shared_ptr<Module>& module) {
            return Of::add(builder, input, std::dynamic_pointer_cast<Layer>(module));
          },
      .forward = [](Module& module, const at::Tensor& input) { return dynamic_cast<Layer&>(module).forward(input); },
      .make_part =
          [](const std::shared_ptr<Module>& module, const ChainPlace& place) {
            return torch::nn::AnyModule(
                std::make_shared<ChainedLayer<Layer>>(std::dynamic_pointer_cast<Layer>(module), place));
          }};
}

template <class... Layers>
std::unordered_map<std::type_index, ChainLayer> make_table() {
  return {{typeid(Layers), chain_layer<Layers>()}...};
}

}  // namespace

const ChainLayer* find_chain_layer(const Module& module) {
  static const auto kTable =
      make_table<Conv1dImpl, Conv2dImpl, Conv3dImpl, ConvTranspose1dImpl, ConvTranspose2dImpl, ConvTranspose3dImpl,
                 LinearImpl, BatchNorm1dImpl, BatchNorm2dImpl, BatchNorm3dImpl, SyncBatchNormImpl, LayerNormImpl,
                 ReLUImpl, ReLU6Impl, LeakyReLUImpl, SiLUImpl, GELUImpl, SigmoidImpl, TanhImpl, MaxPool2dImpl,
                 DropoutImpl>();
  const auto found = kTable.find(typeid(module));
  return found == kTable.end() ? nullptr : &found->second;
}

}  // namespace actnn::nn
