#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "actnn/blocks/program.h"
#include "src/blocks/step.h"

namespace actnn::blocks {

/// The size of each value of a run, from those of its inputs and parameters.
std::vector<Sizes> infer_sizes(const Program& program, const std::vector<Sizes>& inputs,
                               const std::vector<at::Tensor>& parameters, const std::vector<c10::SymInt>& integers);

}  // namespace actnn::blocks
