#pragma once

#include <cstdint>
#include <string_view>

#include "actnn/core/activation.h"

/// \file
/// Activations by name: all that the library knows, and those that can be fused into a pass, with the bits of their
/// derivatives.

namespace actnn {

/// "gelu_tanh"
const char* name_of(ActivationKind kind);

/// Throws c10::ValueError, for `op`, for a name of no activation.
ActivationKind activation_kind(const char* op, std::string_view name);

const char* name_of(ActivationFunction function);

/// Throws c10::ValueError, for `op`, for a name of no activation that can be fused into a pass.
PackedDerivative packed_derivative(const char* op, std::string_view activation, int64_t bits);

/// Throws c10::ValueError unless a pass of the activation with copies of so many `bits` (0: none) can pack these
/// derivatives.
void check_packed_derivative(const char* op, const PackedDerivative& derivative, int64_t bits);

}  // namespace actnn
