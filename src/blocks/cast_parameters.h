#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "actnn/blocks/plan.h"

namespace actnn::blocks {

/// The dtype of a value in a run.
at::ScalarType dtype_of(const Program& program, Value value, at::ScalarType dtype_of_run);

/// Casts the parameters that steps cast, all together.
void cast_parameters(const Program& program, std::vector<at::Tensor>& parameters, at::ScalarType dtype_of_run);

}  // namespace actnn::blocks
