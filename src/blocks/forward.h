#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "actnn/blocks/plan.h"
#include "src/blocks/kept.h"

namespace actnn::blocks {

/// What a run is given.
struct Arguments {
  std::vector<at::Tensor> inputs;      ///< of the type that is computed in
  std::vector<at::Tensor> parameters;  ///< as they are
  std::vector<at::Tensor> buffers;
  std::vector<bool> batch_statistics;
  at::ScalarType dtype;        ///< of activations
  bool casts_weights = false;  ///< under autocast
};

struct ForwardResult {
  at::Tensor output;
  Kept kept;
  int64_t kept_bytes = 0;
};

/// Runs a plan. `wants_gradient`: of inputs, then of parameters; all false: nothing is kept. `originals` are the inputs before casts,
/// whose copies may be known.
ForwardResult run_forward(const Plan& plan, const Arguments& arguments, const std::vector<at::Tensor>& originals,
                          const std::vector<bool>& wants_gradient);

}  // namespace actnn::blocks
