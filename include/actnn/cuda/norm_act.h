#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/activation.h"
#include "actnn/core/norm_act.h"
#include "actnn/core/scalar_types.h"
#include "actnn/core/sign_split.h"
#include "actnn/cuda/random.h"

/// \file
/// Normalization with activation on matrices of rows x channels (core/norm_act.h) on a GPU: the passes over elements.
/// The packed bytes and y are those of the CPU; sums are added in a fixed order, so that equal inputs give equal bits,
/// but their last bits may differ from the CPU's. Nothing waits for the device.

namespace actnn::cuda {

/// Elements of scratch memory that `channel_moments` and `norm_act_sums` need.
int64_t norm_act_scratch(const SplitLayout<int64_t>& layout);

/// Mean and biased variance of each channel of `x`: [channels] each.
cudaError_t channel_moments(const void* x, ElementType type, const SplitLayout<int64_t>& layout, float* scratch,
                            float* mean, float* variance, cudaStream_t stream);

/// Copies of the normalized input, s = s_scale x + s_shift of `channels`, as core/sign_split.h has them without sides.
struct NormalizedPacking {
  const NormActChannel* channels = nullptr;  ///< [channels]
  int bits = 0;                              ///< 2..7; 0: none
  uint8_t* packed = nullptr;                 ///< out: layout.bytes(bits), as `NormActForward::packed`
  RandomSource random = {};
};

struct NormActForward {
  const void* x;
  const void* residual;  ///< null: none
  void* y;               ///< out
  ElementType type;
  SplitLayout<int64_t> layout;
  const NormActChannel* channels;  ///< [channels]
  float slope;
  int bits;          ///< 2..8; 0: no copies
  bool keeps_below;  ///< false: copies below the kink are not wanted, and count as 0
  uint8_t* packed;   ///< out: layout.bytes(planes()), all of them; begins at a multiple of 16 bytes
  RandomSource random;
  bool stochastic;
  NormalizedPacking normalized = {};  ///< with a residual, of leaky ReLU: is packed beside what `packed` has
  PackedDerivative derivative = {};

  int planes() const { return bits + derivative.bits; }
};

cudaError_t norm_act(const NormActForward& forward, cudaStream_t stream);

/// The packed copies and the gradients that come back.
struct NormActBackward {
  const uint8_t* packed;  ///< begins at a multiple of 16 bytes
  int bits;
  const void* grad;         ///< null where only copies are read
  const void* second_grad;  ///< is added to `grad`; null: none
  ElementType type;         ///< of gradients and results
  SplitLayout<int64_t> layout;
  float slope;
  /// The normalization's input, which replaces the copies: s = s_scale x + s_shift of `channels_of_x`. `packed` gives
  /// the sides then, and may be null if `slope` is 1. Null: none.
  const void* x = nullptr;
  const NormActChannel* channels_of_x = nullptr;
  /// Copies of the normalized input, which take the place of those in `packed`, with sides as with `x`. All channels
  /// are linear then.
  const uint8_t* normalized = nullptr;
  int normalized_bits = 0;
  /// In the planes of `packed` after those of the copies, of which there may then be none if there is x.
  PackedDerivative derivative = {};

  int planes() const { return bits + derivative.bits; }
};

/// Sums of dz and of dz s: [channels] each.
cudaError_t norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, float* scratch, float* sums,
                          float* copy_sums, cudaStream_t stream);

/// The input's gradient, and dz, rounded, unless `grad_sum` is null. Each may alias a tensor that is read.
cudaError_t norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                                    void* grad_sum, cudaStream_t stream);

/// y again, from the copies; not of smooth activations.
cudaError_t norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, cudaStream_t stream);

}  // namespace actnn::cuda
