#pragma once

#include <ATen/core/Tensor.h>

#include "actnn/blocks/program.h"

/// \file
/// Activations that are passes of their own.

namespace actnn::blocks {

at::Tensor activate(const Activation& activation, const at::Tensor& input);

/// The derivative at `input`, of its dtype.
at::Tensor derivative(const Activation& activation, const at::Tensor& input);

}  // namespace actnn::blocks
