#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "src/autograd/save_options.h"

/// \file
/// What the batch norms are called with besides input, weight and bias, and its checks.

namespace actnn {

struct BatchNormStatistics {
  std::optional<at::Tensor> running_mean;
  std::optional<at::Tensor> running_var;
  bool training;
  double momentum;
  double eps;
};

/// An error, which names `op`, unless the arguments fit each other.
void check_batch_norm(const char* op, const at::Tensor& input, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, const BatchNormStatistics& statistics,
                      const SaveOptions& saving);

}  // namespace actnn
