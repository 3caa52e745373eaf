#include "src/ops/activation_names.h"

#include <c10/util/Exception.h>

#include <array>

namespace actnn {
namespace {

using enum ActivationFunction;

constexpr std::array kFunctions{kLeakyReLU, kReLU6, kSiLU, kHardswish};

}  // namespace

const char* name_of(ActivationFunction function) {
  switch (function) {
    case kReLU6:
      return "relu6";
    case kSiLU:
      return "silu";
    case kHardswish:
      return "hardswish";
    case kLeakyReLU:
      break;
  }
  return "leaky_relu";
}

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
