#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// \file
/// Bits for the samples of a batch (Chen et al., "ActNN", ICML 2021, section 4.2), on a GPU: the same bits as on the
/// CPU for equal sensitivities. Each decrement counts those that come before it, so the work grows with the square of
/// the samples.

namespace actnn::cuda {

/// What the sensitivities of samples are made of: `sample_sensitivity(range[i], factor, *gradient)`.
struct SampleSensitivities {
  const float* range;
  const float* gradient;  ///< null: none
  float factor;
  int64_t samples;
};

/// From `initial` bits for each sample, takes the `excess` cheapest decrements (all of them, if there are fewer).
/// Writes the sensitivities too.
cudaError_t allocate_sample_bits(const SampleSensitivities& samples, int initial, int64_t excess, float* sensitivity,
                                 uint8_t* bits, cudaStream_t stream);

/// Updates the running squared norm `gradient` by the mean of `norms`; `known` gets it, or 1 while it is 0.
cudaError_t update_gradient_norm(const float* norms, int64_t samples, float* gradient, float* known,
                                 cudaStream_t stream);

}  // namespace actnn::cuda
