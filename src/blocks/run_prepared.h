#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <memory>
#include <vector>

#include "src/blocks/prepared_plan.h"

namespace actnn::blocks {

/// As `Block::run`.
std::vector<at::Tensor> run_prepared(const std::shared_ptr<const PreparedPlan>& prepared,
                                     const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters,
                                     const std::vector<at::Tensor>& buffers, const std::vector<c10::SymInt>& integers,
                                     const std::vector<at::Tensor>& copies);

}  // namespace actnn::blocks
