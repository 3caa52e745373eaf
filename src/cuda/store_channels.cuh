#pragma once

#include <cstdint>

#include "actnn/core/norm_act.h"
#include "actnn/cuda/norm_act_channels.h"

/// \file
/// What kernels do with the two numbers that they found for a channel: a function object for each.

namespace actnn::cuda {

/// `numbers` of a channel; null: `otherwise`.
__device__ inline float number_or(const float* numbers, int64_t channel, float otherwise) {
  return numbers ? numbers[channel] : otherwise;
}

struct StoreNumbers {
  float* first;
  float* second;

  __device__ void operator()(int64_t channel, float of_first, float of_second) const {
    first[channel] = of_first;
    second[channel] = of_second;
  }
};

/// Of the moments, what normalization needs.
struct StoreChannels {
  const float* weight;
  const float* bias;
  float eps;
  bool has_bend;
  NormActChannel* forward;
  NormActInverse* inverse;
  float* inverse_deviation;

  __device__ void operator()(int64_t channel, float mean, float variance) const {
    const float own_weight = number_or(weight, channel, 1.0F);
    const float own_bias = number_or(bias, channel, 0.0F);
    const float own_inverse_deviation = 1.0F / __fsqrt_rn(variance + eps);
    inverse_deviation[channel] = own_inverse_deviation;
    forward[channel] = forward_channel(mean, own_inverse_deviation, own_weight, own_bias, has_bend);
    inverse[channel] = inverse_channel(own_weight, own_bias, has_bend);
  }
};

/// And updates of running statistics. `batches` counts this batch already.
struct StoreBatchChannels {
  StoreChannels store;
  BatchStatistics statistics;
  float unbiased;  ///< variances relative to biased ones

  __device__ void operator()(int64_t channel, float mean, float variance) const {
    store(channel, mean, variance);
    const float momentum = statistics.momentum < 0.0F
                               ? static_cast<float>(1.0 / static_cast<double>(*statistics.batches))
                               : statistics.momentum;
    update(statistics.running_mean, channel, mean, momentum);
    update(statistics.running_var, channel, variance * unbiased, momentum);
  }

 private:
  __device__ static void update(float* running, int64_t channel, float value, float momentum) {
    if (running) {
      running[channel] = running_statistic(running[channel], value, momentum);
    }
  }
};

/// Of the sums of dz and dz s, what gradients need.
struct StoreGradients {
  NormalizedChannels channels;
  NormActGradient* gradients;
  float* grad_weight;
  float* grad_bias;

  __device__ void operator()(int64_t channel, float sum, float copy_sum) const {
    const NormActInverse& inverse = channels.inverse[channel];
    const float share = channels.count > 0 ? 1.0F / static_cast<float>(channels.count) : 0.0F;
    gradients[channel] = gradient_channel(inverse, number_or(channels.weight, channel, 1.0F),
                                          channels.inverse_deviation[channel], sum * share, copy_sum * share);
    grad_weight[channel] = weight_gradient(inverse, sum, copy_sum);
    grad_bias[channel] = sum;
  }
};

}  // namespace actnn::cuda
