#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "actnn/core/activation.h"
#include "actnn/core/columns.h"
#include "actnn/core/norm_act.h"
#include "actnn/core/scalar_types.h"
#include "actnn/cuda/random.h"

/// \file
/// Normalization with activation on matrices of rows x channels (core/norm_act.h) on a GPU: the passes over elements.
/// The packed bytes and y are those of the CPU; sums are added in a fixed order, so that equal inputs give equal bits,
/// but their last bits may differ from the CPU's. Nothing waits for the device. Packed tensors begin at a multiple of
/// 16 bytes.

namespace actnn::cuda {

/// Elements of scratch memory that `channel_moments` and `norm_act_sums` need.
int64_t norm_act_scratch(int64_t rows, int64_t channels, ElementType type);

/// Mean and biased variance of each channel of `x`: [channels] each.
cudaError_t channel_moments(const void* x, ElementType type, int64_t rows, int64_t channels, float* scratch,
                            float* mean, float* variance, cudaStream_t stream);

/// Copies of the normalized input, s = s_scale x + s_shift of `channels`, in a packed tensor of their own.
struct NormalizedPacking {
  const NormActChannel* channels = nullptr;  ///< [channels]; null: no such copies
  int bits = 0;                              ///< 1..8
  uint8_t* packed = nullptr;                 ///< out
  RandomSource random = {};
};

struct NormActForward {
  const void* x;
  const void* residual;  ///< null: none; not with smooth activations
  void* y;               ///< out
  ElementType type;
  ColumnLayout<int64_t> layout;    ///< masks: those of the activation, or none
  const NormActChannel* channels;  ///< [channels]
  FusedActivation activation;
  bool keeps_below;  ///< false: copies below a kink are not wanted, and count as 0
  uint8_t* packed;   ///< out: layout.bytes(), all of them, header included; null if there are no codes and no masks
  RandomSource random;
  Rounding rounding;
  NormalizedPacking normalized = {};  ///< with a residual and a leaky ReLU or no activation: packed beside

  ColumnLayout<int64_t> normalized_layout() const {
    return {layout.rows, layout.channels, layout.group_rows, normalized.bits, 0};
  }
};

cudaError_t norm_act(const NormActForward& forward, cudaStream_t stream);

/// What is kept of the elements, and the gradients that come back: as of cpu/norm_act.h.
struct NormActBackward {
  const uint8_t* packed;
  ColumnLayout<int64_t> layout;
  const void* grad;
  const void* second_grad;
  ElementType type;
  FusedActivation activation;
  const void* x = nullptr;
  const NormActChannel* channels_of_x = nullptr;
  const uint8_t* normalized = nullptr;
  int normalized_bits = 0;

  ColumnLayout<int64_t> normalized_layout() const {
    return {layout.rows, layout.channels, layout.group_rows, normalized_bits, 0};
  }
};

/// Sums of dz and of dz s: [channels] each.
cudaError_t norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, float* scratch, float* sums,
                          float* copy_sums, cudaStream_t stream);

/// The input's gradient, and dz, rounded, unless `grad_sum` is null. Each may alias a tensor that is read.
cudaError_t norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                                    void* grad_sum, cudaStream_t stream);

/// y again, from the copies.
cudaError_t norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, cudaStream_t stream);

}  // namespace actnn::cuda
