#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "actnn/blocks/plan.h"
#include "src/blocks/forward.h"
#include "src/blocks/schedule.h"

namespace actnn::blocks {

struct BackwardArguments : RunArguments {
  std::vector<std::vector<c10::SymInt>> sizes;  ///< of inputs
  std::vector<at::Tensor> saved;                ///< by the schedule's slots
  std::vector<at::Tensor>
      grads;  ///< of results; undefined ones count as zeros. The memory of those that nobody else holds is used again
};

/// The gradients of inputs, then of parameters, in their dtypes; undefined where not wanted. `wanted` as for the
/// schedule, or fewer.
std::vector<at::Tensor> run_backward(const Plan& plan, const Schedule& schedule, BackwardArguments arguments,
                                     const std::vector<bool>& wanted, const std::vector<at::ScalarType>& input_dtypes);

}  // namespace actnn::blocks
