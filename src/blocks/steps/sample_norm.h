#pragma once

#include "src/blocks/steps/normalized.h"

/// \file
/// Backward of norms over groups of a sample's channels.

namespace actnn::blocks {

/// Gradients of a norm of [N, C, ...] with 1 / deviation of each sample and group saved, [N, groups].
void add_sample_norm_gradients(BackwardRun& run, Value output, const NormOperands& norm, int64_t groups);

}  // namespace actnn::blocks
