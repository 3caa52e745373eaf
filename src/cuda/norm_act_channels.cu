#include "actnn/cuda/norm_act_channels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/store_channels.cuh"

namespace actnn::cuda {
namespace {

/// `first` and `second`: the two values of each channel.
template <class Store>
__global__ void store_kernel(const float* first, const float* second, int64_t channels, Store store) {
  const int64_t c = thread_index();
  if (c < channels) {
    store(c, store.known(c), first[c], second[c]);
  }
}

template <class Store>
cudaError_t store_all(const float* first, const float* second, int64_t channels, const Store& store,
                      cudaStream_t stream) {
  if (channels == 0) {
    return cudaSuccess;
  }
  store_kernel<<<blocks_for(channels, kBlockThreads), kBlockThreads, 0, stream>>>(first, second, channels, store);
  return cudaGetLastError();
}

__global__ void sum_channels_kernel(const NormActChannel* norm, int64_t channels, NormActChannel* forward,
                                    DecodeMap* decode) {
  const int64_t c = thread_index();
  if (c < channels) {
    forward[c] = norm ? sum_channel(norm[c].z_scale, norm[c].z_shift) : sum_channel(1.0F, 0.0F);
    decode[c] = sum_decode_map();
  }
}

}  // namespace

cudaError_t sum_channels(const NormActChannel* norm, int64_t channels, NormActChannel* forward, DecodeMap* decode,
                         cudaStream_t stream) {
  if (channels == 0) {
    return cudaSuccess;
  }
  sum_channels_kernel<<<blocks_for(channels, kBlockThreads), kBlockThreads, 0, stream>>>(norm, channels, forward,
                                                                                         decode);
  return cudaGetLastError();
}

cudaError_t norm_act_channels(const NormActChannels& of, NormActChannel* forward, DecodeMap* decode, float* rstd,
                              cudaStream_t stream) {
  const StoreChannels store{of.weight, of.bias, of.eps, of.has_kink, forward, decode, rstd};
  return store_all(of.mean, of.variance, of.channels, store, stream);
}

cudaError_t norm_act_gradients(const NormActGradients& of, NormActGradient* gradients, float* grad_weight,
                               float* grad_bias, cudaStream_t stream) {
  const StoreGradients store{{of.decode, of.weight, of.rstd, of.count}, gradients, grad_weight, grad_bias};
  return store_all(of.sums, of.copy_sums, of.channels, store, stream);
}

}  // namespace actnn::cuda
