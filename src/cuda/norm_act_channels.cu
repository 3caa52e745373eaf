#include "actnn/cuda/norm_act_channels.h"
#include "src/cuda/launch.cuh"

namespace actnn::cuda {
namespace {

__global__ void channels_kernel(NormActChannels of, NormActChannel* forward, NormActInverse* inverse,
                                float* inverse_deviation) {
  const int64_t c = thread_index();
  if (c < of.channels) {
    const float weight = of.weight ? of.weight[c] : 1.0F;
    const float bias = of.bias ? of.bias[c] : 0.0F;
    const float deviation = __fsqrt_rn(of.variance[c] + of.eps);
    inverse_deviation[c] = 1.0F / deviation;
    forward[c] = forward_channel(of.mean[c], 1.0F / deviation, weight, bias, of.has_bend);
    inverse[c] = inverse_channel(weight, bias, of.has_bend);
  }
}

__global__ void gradients_kernel(NormActGradients of, NormActGradient* gradients, float* grad_weight,
                                 float* grad_bias) {
  const int64_t c = thread_index();
  if (c < of.channels) {
    const float weight = of.weight ? of.weight[c] : 1.0F;
    const float share = of.count > 0 ? 1.0F / static_cast<float>(of.count) : 0.0F;
    gradients[c] =
        gradient_channel(of.inverse[c], weight, of.inverse_deviation[c], of.sums[c] * share, of.copy_sums[c] * share);
    grad_weight[c] = weight_gradient(of.inverse[c], of.sums[c], of.copy_sums[c]);
    grad_bias[c] = of.sums[c];
  }
}

}  // namespace

cudaError_t norm_act_channels(const NormActChannels& of, NormActChannel* forward, NormActInverse* inverse,
                              float* inverse_deviation, cudaStream_t stream) {
  if (of.channels == 0) {
    return cudaSuccess;
  }
  channels_kernel<<<blocks_for(of.channels, kBlockThreads), kBlockThreads, 0, stream>>>(of, forward, inverse,
                                                                                        inverse_deviation);
  return cudaGetLastError();
}

cudaError_t norm_act_gradients(const NormActGradients& of, NormActGradient* gradients, float* grad_weight,
                               float* grad_bias, cudaStream_t stream) {
  if (of.channels == 0) {
    return cudaSuccess;
  }
  gradients_kernel<<<blocks_for(of.channels, kBlockThreads), kBlockThreads, 0, stream>>>(of, gradients, grad_weight,
                                                                                         grad_bias);
  return cudaGetLastError();
}

}  // namespace actnn::cuda
