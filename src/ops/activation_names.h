#pragma once

#include <cstdint>
#include <string_view>

#include "actnn/core/activation.h"

/// \file
/// Activations as schemas have them: a name, and the bits of derivatives.

namespace actnn {

const char* name_of(ActivationFunction function);

/// Throws c10::ValueError, for `op`, for a name of no activation.
PackedDerivative packed_derivative(const char* op, std::string_view activation, int64_t bits);

/// Throws c10::ValueError unless a pass of the activation with copies of so many `bits` (0: none) can pack these derivatives.
void check_packed_derivative(const char* op, const PackedDerivative& derivative, int64_t bits);

}  // namespace actnn
