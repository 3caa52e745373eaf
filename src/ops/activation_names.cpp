#include "src/ops/activation_names.h"

#include <c10/util/Exception.h>

#include <array>
#include <string>

namespace actnn {
namespace {

using enum ActivationFunction;

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

constexpr std::array kFunctions{kLeakyReLU, kReLU6, kSiLU, kHardswish};

constexpr ActivationKind kind_of(ActivationFunction function) {
  switch (function) {
    case kReLU6:
      return ActivationKind::kReLU6;
    case kSiLU:
      return ActivationKind::kSiLU;
    case kHardswish:
      return ActivationKind::kHardswish;
    case kLeakyReLU:
      break;
  }
  return ActivationKind::kLeakyReLU;
}

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

const char* name_of(ActivationFunction function) { return name_of(kind_of(function)); }

PackedDerivative packed_derivative(const char* op, std::string_view activation, int64_t bits) {
  for (const ActivationFunction function : kFunctions) {
    if (activation == name_of(function)) {
      return {function, static_cast<int>(bits)};
    }
  }
  C10_THROW_ERROR(ValueError,
                  c10::str(op, ": activation must be leaky_relu, relu6, silu or hardswish, got ", activation));
}

void check_packed_derivative(const char* op, const PackedDerivative& derivative, int64_t bits) {
  const char* name = name_of(derivative.function);
  if (derivative.function == kLeakyReLU) {
    TORCH_CHECK_VALUE(derivative.bits == 0, op, ": derivative_bits must be 0 for ", name,
                      ", which keeps no derivatives, got ", derivative.bits);
    return;
  }
  const int most = derivative.function == kReLU6 ? 1 : kMostDerivativeBits;
  TORCH_CHECK_VALUE(derivative.bits >= (bits == 0 ? 0 : 1) && derivative.bits <= most, op,
                    ": derivative_bits must be in 1..", most, " for ", name, ", or 0 where nothing is packed, got ",
                    derivative.bits);
}

}  // namespace actnn
