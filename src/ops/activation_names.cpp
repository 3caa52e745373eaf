#include "src/ops/activation_names.h"

#include <c10/util/Exception.h>

#include <array>
#include <string>

namespace actnn {
namespace {

struct NamedActivation {
  ActivationKind kind;
  const char* name;
};

constexpr std::array kNames{NamedActivation{ActivationKind::kReLU, "relu"},
                            NamedActivation{ActivationKind::kReLU6, "relu6"},
                            NamedActivation{ActivationKind::kLeakyReLU, "leaky_relu"},
                            NamedActivation{ActivationKind::kSiLU, "silu"},
                            NamedActivation{ActivationKind::kHardswish, "hardswish"},
                            NamedActivation{ActivationKind::kGELU, "gelu"},
                            NamedActivation{ActivationKind::kGELUTanh, "gelu_tanh"},
                            NamedActivation{ActivationKind::kSigmoid, "sigmoid"},
                            NamedActivation{ActivationKind::kTanh, "tanh"}};

struct NamedFunction {
  ActivationFunction function;
  const char* name;
};

constexpr std::array kFunctions{
    NamedFunction{ActivationFunction::kIdentity, "identity"},
    NamedFunction{ActivationFunction::kLeakyReLU, "leaky_relu"}, NamedFunction{ActivationFunction::kReLU6, "relu6"},
    NamedFunction{ActivationFunction::kSiLU, "silu"}, NamedFunction{ActivationFunction::kHardswish, "hardswish"}};

}  // namespace

const char* name_of(ActivationKind kind) { return kNames.at(static_cast<size_t>(kind)).name; }

ActivationKind activation_kind(const char* op, std::string_view name) {
  std::string known;
  for (const NamedActivation& activation : kNames) {
    if (name == activation.name) {
      return activation.kind;
    }
    known += known.empty() ? "" : ", ";
    known += activation.name;
  }
  C10_THROW_ERROR(ValueError, c10::str(op, ": an activation must be one of ", known, ", got ", name));
}

const char* name_of(ActivationFunction function) { return kFunctions.at(static_cast<size_t>(function)).name; }

FusedActivation fused_activation(const char* op, std::string_view name, double slope) {
  for (const NamedFunction& known : kFunctions) {
    if (name == known.name) {
      return {known.function, static_cast<float>(slope)};
    }
  }
  C10_THROW_ERROR(ValueError,
                  c10::str(op, ": activation must be identity, leaky_relu, relu6, silu or hardswish, got ", name));
}

}  // namespace actnn
