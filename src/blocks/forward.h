#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "actnn/blocks/plan.h"
#include "src/blocks/schedule.h"

namespace actnn::blocks {

/// What a run is given, of backward too.
struct RunArguments {
  std::vector<at::Tensor> parameters;  ///< as they are
  std::vector<c10::SymInt> integers;
  std::vector<at::Tensor> copies;  ///< tensors of the imports
  at::ScalarType dtype;            ///< of values, where the program does not say
};

struct ForwardArguments : RunArguments {
  std::vector<at::Tensor> inputs;
  std::vector<at::Tensor> buffers;  ///< batch norms update theirs
};

struct ForwardResult {
  std::vector<at::Tensor> results;
  std::vector<at::Tensor> saved;     ///< by the schedule's slots
  std::vector<at::Tensor> exported;  ///< tensors of the exported copies
};

/// The tensors of the copies that a plan exports, among what was saved.
std::vector<at::Tensor> exported_copies(const Plan& plan, const Schedule& schedule,
                                        const std::vector<at::Tensor>& saved);

/// Runs a plan.
ForwardResult run_forward(const Plan& plan, const Schedule& schedule, const ForwardArguments& arguments);

}  // namespace actnn::blocks
