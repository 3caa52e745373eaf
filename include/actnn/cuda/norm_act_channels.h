#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/norm_act.h"

/// \file
/// Normalization with activation (core/norm_act.h): the numbers of channels, on a GPU. A null weight is 1, a null bias 0.

namespace actnn::cuda {

struct NormActChannels {
  const float* mean;
  const float* variance;
  const float* weight;
  const float* bias;
  float eps;
  bool has_bend;
  int64_t channels;
};

cudaError_t norm_act_channels(const NormActChannels& of, NormActChannel* forward, NormActInverse* inverse,
                              float* inverse_deviation, cudaStream_t stream);

/// `sums` and `copy_sums` as of `norm_act_sums`; `count`: rows that they are divided by for expectations, 0: these are 0.
struct NormActGradients {
  const float* sums;
  const float* copy_sums;
  const NormActInverse* inverse;
  const float* weight;
  const float* inverse_deviation;
  int64_t count;
  int64_t channels;
};

cudaError_t norm_act_gradients(const NormActGradients& of, NormActGradient* gradients, float* grad_weight,
                               float* grad_bias, cudaStream_t stream);

}  // namespace actnn::cuda
