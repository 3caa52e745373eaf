#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <memory>
#include <string>
#include <vector>

#include "src/blocks/backward.h"
#include "src/blocks/forward.h"
#include "src/blocks/prepared_plan.h"

/// \file
/// Forward and backward of programs as ops that compilers see: everything is an argument, nothing is changed in place,
/// and no tensor that is returned shares memory with another.

namespace actnn::blocks {

/// As `run_forward`; buffers of the result are those of the arguments afterwards.
struct TracedForward {
  ForwardResult result;
  std::vector<at::Tensor> buffers;
};
TracedForward traced_forward(const PreparedPlan& prepared, const Schedule& schedule, const ForwardArguments& arguments,
                             const std::vector<bool>& wanted, bool exports);

std::vector<at::Tensor> traced_backward(const PreparedPlan& prepared, const BackwardArguments& arguments,
                                        const std::vector<bool>& forward_wanted, bool exports,
                                        const std::vector<bool>& wanted,
                                        const std::vector<at::ScalarType>& input_dtypes);

}  // namespace actnn::blocks
