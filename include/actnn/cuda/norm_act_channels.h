#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/norm_act.h"
#include "actnn/core/scalar_types.h"
#include "actnn/cuda/norm_act.h"

/// \file
/// Normalization with activation (core/norm_act.h): the coefficients of channels, on a GPU. A null weight is 1, a null
/// bias 0.

namespace actnn::cuda {

struct NormActChannels {
  const float* mean;
  const float* variance;
  const float* weight;
  const float* bias;
  float eps;
  bool has_kink;
  int64_t channels;
};

cudaError_t norm_act_channels(const NormActChannels& of, NormActChannel* forward, DecodeMap* decode, float* rstd,
                              cudaStream_t stream);

/// For sums of a residual and a normalization by `norm`, or x itself if that is null.
cudaError_t sum_channels(const NormActChannel* norm, int64_t channels, NormActChannel* forward, DecodeMap* decode,
                         cudaStream_t stream);

/// Batch normalization in training: what it knows of channels, and the running statistics that it updates.
struct BatchStatistics {
  const float* weight;
  const float* bias;
  float eps;
  bool has_kink;
  float* running_mean;  ///< null: none
  float* running_var;   ///< of unbiased variances; null: none
  int64_t* batches;     ///< one number, which is incremented; null: none
  float momentum;       ///< share of this batch in running statistics; negative: 1 / `batches`, then not null
};

/// `channel_moments` and `norm_act_channels` with one launch fewer. `rows` is not 0; `scratch` as for
/// `channel_moments`.
cudaError_t batch_norm_channels(const void* x, ElementType type, int64_t rows, int64_t channels, float* scratch,
                                const BatchStatistics& statistics, NormActChannel* forward, DecodeMap* decode,
                                float* rstd, cudaStream_t stream);

/// `sums` and `copy_sums` as of `norm_act_sums`; `count`: rows that they are divided by for expectations, 0: these are
/// 0.
struct NormActGradients {
  const float* sums;
  const float* copy_sums;
  const DecodeMap* decode;
  const float* weight;
  const float* rstd;
  int64_t count;
  int64_t channels;
};

cudaError_t norm_act_gradients(const NormActGradients& of, NormActGradient* gradients, float* grad_weight,
                               float* grad_bias, cudaStream_t stream);

/// What backward needs of a normalization; `count` as of `NormActGradients`.
struct NormalizedChannels {
  const DecodeMap* decode;
  const float* weight;
  const float* rstd;
  int64_t count;
};

/// `norm_act_sums` and `norm_act_gradients` with one launch fewer; `scratch` as for `norm_act_sums`.
cudaError_t norm_act_sums_and_gradients(const NormActBackward& backward, const NormalizedChannels& channels,
                                        float* scratch, NormActGradient* gradients, float* grad_weight,
                                        float* grad_bias, cudaStream_t stream);

}  // namespace actnn::cuda
