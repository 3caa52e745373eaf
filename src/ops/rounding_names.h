#pragma once

#include <string_view>

#include "actnn/core/rounding.h"

namespace actnn {

/// "dithered", "stochastic" or "nearest"
const char* name_of(Rounding rounding);

/// Throws c10::ValueError, for `op`, for another name.
Rounding rounding_of(const char* op, std::string_view name);

}  // namespace actnn
