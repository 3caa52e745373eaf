#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "src/blocks/run.h"
#include "src/blocks/steps/batch_norm.h"

/// \file
/// Norms with a group: the batch is spread over its ranks, which must all call these, in the same order.

namespace actnn::blocks {

/// As `norm_act_channels`, of the moments of all ranks' rows, whose number `rows` becomes. `x`: this rank's, [rows, C];
/// there may be none. Updates the running statistics.
std::tuple<at::Tensor, at::Tensor, at::Tensor> synchronized_channels(const BatchNorm& norm, ForwardRun& run,
                                                                     const at::Tensor& x, bool has_kink,
                                                                     at::Tensor& rows);

/// `NormActGradient` [C, 4] of all ranks' rows, from the gradients of weight and bias, float32 [C], of this rank's.
at::Tensor synchronized_gradients(const BatchNorm& norm, const at::Tensor& decode, const at::Tensor& rstd,
                                  const at::Tensor& rows, const std::optional<at::Tensor>& weight,
                                  const at::Tensor& grad_weight, const at::Tensor& grad_bias);

}  // namespace actnn::blocks
