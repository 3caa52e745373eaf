#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "actnn/blocks/plan.h"
#include "src/blocks/kept.h"

namespace actnn::blocks {

/// What backward is given. `grad` is its own: the memory is used again if nobody else holds it.
struct BackwardArguments {
  std::vector<at::Tensor> parameters;  ///< those that forward was given
  std::vector<bool> wanted;            ///< gradients, of inputs, then of parameters
  at::ScalarType dtype;                ///< of activations
  at::Tensor grad;
};

/// The gradients of inputs, then of parameters; undefined where not wanted.
std::vector<at::Tensor> run_backward(const Plan& plan, const Kept& kept, BackwardArguments arguments);

}  // namespace actnn::blocks
