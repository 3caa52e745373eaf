#pragma once

#include <cstdint>
#include <string_view>

#include "actnn/core/activation.h"

/// \file
/// Activations by name: all that the library knows, and those that can be fused into a pass.

namespace actnn {

/// "gelu_tanh"
const char* name_of(ActivationKind kind);

/// Throws c10::ValueError, for `op`, for a name of no activation.
ActivationKind activation_kind(const char* op, std::string_view name);

const char* name_of(ActivationFunction function);

/// Throws c10::ValueError, for `op`, for a name of no activation that can be fused into a pass.
FusedActivation fused_activation(const char* op, std::string_view name, double slope);

}  // namespace actnn
