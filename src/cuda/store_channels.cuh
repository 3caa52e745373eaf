#pragma once

#include <cstdint>

#include "actnn/core/norm_act.h"
#include "actnn/cuda/norm_act_channels.h"

/// \file
/// What kernels do with the two values that they computed for a channel: a function object for each. What else it needs
/// of the channel is loaded separately, so that nothing waits for it once the values are there.

namespace actnn::cuda {

/// The value of a channel; `otherwise` where `values` is null.
__device__ inline float value_or(const float* values, int64_t channel, float otherwise) {
  return values ? values[channel] : otherwise;
}

struct StorePair {
  float* first;
  float* second;

  struct Known {};
  __device__ static Known known(int64_t /*channel*/) { return {}; }

  __device__ void operator()(int64_t channel, Known /*known*/, float of_first, float of_second) const {
    first[channel] = of_first;
    second[channel] = of_second;
  }
};

/// Of the moments, what normalization needs.
struct StoreChannels {
  const float* weight;
  const float* bias;
  float eps;
  bool has_kink;
  NormActChannel* forward;
  DecodeMap* decode;
  float* rstd;

  struct Known {
    float weight;
    float bias;
  };
  __device__ Known known(int64_t channel) const {
    return {value_or(weight, channel, 1.0F), value_or(bias, channel, 0.0F)};
  }

  __device__ void operator()(int64_t channel, const Known& known, float mean, float variance) const {
    const float own_rstd = 1.0F / __fsqrt_rn(variance + eps);
    rstd[channel] = own_rstd;
    forward[channel] = forward_channel(mean, own_rstd, known.weight, known.bias, has_kink);
    decode[channel] = decode_map(known.weight, known.bias, has_kink);
  }
};

/// And updates of running statistics. `batches` counts this batch already.
struct StoreBatchChannels {
  StoreChannels store;
  BatchStatistics statistics;
  float unbiased;  ///< variances relative to biased ones

  struct Known {
    StoreChannels::Known channel;
    float running_mean;
    float running_var;
    float momentum;
  };
  __device__ Known known(int64_t channel) const {
    return {store.known(channel), value_or(statistics.running_mean, channel, 0.0F),
            value_or(statistics.running_var, channel, 0.0F),
            statistics.momentum < 0.0F ? static_cast<float>(1.0 / static_cast<double>(*statistics.batches))
                                       : statistics.momentum};
  }

  __device__ void operator()(int64_t channel, const Known& known, float mean, float variance) const {
    store(channel, known.channel, mean, variance);
    if (statistics.running_mean) {
      statistics.running_mean[channel] = running_statistic(known.running_mean, mean, known.momentum);
    }
    if (statistics.running_var) {
      statistics.running_var[channel] = running_statistic(known.running_var, variance * unbiased, known.momentum);
    }
  }
};

/// Of the sums of dz and dz s, what gradients need.
struct StoreGradients {
  NormalizedChannels channels;
  NormActGradient* gradients;
  float* grad_weight;
  float* grad_bias;

  struct Known {
    DecodeMap decode;
    float weight;
    float rstd;
  };
  __device__ Known known(int64_t channel) const {
    return {channels.decode[channel], value_or(channels.weight, channel, 1.0F), channels.rstd[channel]};
  }

  __device__ void operator()(int64_t channel, const Known& known, float sum, float copy_sum) const {
    const float share = channels.count > 0 ? 1.0F / static_cast<float>(channels.count) : 0.0F;
    gradients[channel] = gradient_channel(known.decode, known.weight, known.rstd, sum * share, copy_sum * share);
    grad_weight[channel] = weight_gradient(known.decode, sum, copy_sum);
    grad_bias[channel] = sum;
  }
};

}  // namespace actnn::cuda
