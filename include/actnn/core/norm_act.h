#pragma once

#include <cstdint>

#include "actnn/core/host_device.h"
#include "actnn/core/scalar_types.h"

/// \file
/// A normalization with an activation, channel by channel, on matrices of rows x channels:
///
///     x-hat = (x - mean) / sqrt(var + eps)      z = weight x-hat + bias (+ residual)      y = activation(z)
///
/// and what is saved of it for backward: a copy s of each element in groups of columns (core/columns.h). Channels are
/// of one of two kinds:
///
///     *linear*   s = x-hat, on one grid (core/rounding.h)
///     *split*    s = z / |weight|, whose distances from the kink at 0 have a grid on each side (core/sides.h)
///
/// In both, x-hat and z are linear functions of s, so that an unbiased copy of s gives unbiased ones of x-hat, of z
/// and, where the activation is linear on each side and the side is known, of y. Channels of activations with a kink
/// are split unless the kink is far from all elements or nowhere (weight near or equal to 0), where distances from it
/// would be large. Which side an element is on is a mask of its own, exact for both kinds. Without a mask there is one
/// grid, also for sums with a residual, where s = z.
///
/// Smooth activations keep s, from which backward computes derivative and y. The bias of SiLU's is of the order of s's
/// variance: take 5 bits or more (docs/accuracy.md). Hardswish's derivative is linear between its jumps at -3 and 3;
/// masks say exactly where an element is, so that it is unbiased.

namespace actnn {

/// What forward does with an element of a channel: z = z_scale x + z_shift (+ residual), s = s_scale (linear ? x : z) +
/// s_shift.
struct NormActChannel {
  float z_scale;
  float z_shift;
  float s_scale;
  float s_shift;
  float linear;  ///< 0 or 1
};
inline constexpr int64_t kNormActChannel = 5;
static_assert(sizeof(NormActChannel) == kNormActChannel * sizeof(float));

/// How a copy s is decoded: x-hat = p s + q, z = a s + b.
struct DecodeMap {
  float p;
  float q;
  float a;
  float b;
  float linear;  ///< 0 or 1
};
inline constexpr int64_t kDecodeMap = 5;
static_assert(sizeof(DecodeMap) == kDecodeMap * sizeof(float));

/// A channel whose kink is more standard deviations than this away from the mean is linear.
inline constexpr float kFarthestKink = 8.0F;

/// The smallest weight of a split channel: its inverse is finite.
inline constexpr float kSmallestSplitWeight = 0x1p-126F;

/// Whether a channel is saved as linear: it has no kink, or one that is far away or nowhere (weight near 0, or NaN).
ACTNN_HOST_DEVICE constexpr bool is_linear_channel(float weight, float bias, bool has_kink) {
  const float size = weight < 0.0F ? -weight : weight;
  const float offset = bias < 0.0F ? -bias : bias;
  return !has_kink || !(offset <= kFarthestKink * size) || size < kSmallestSplitWeight;
}

ACTNN_HOST_DEVICE constexpr NormActChannel forward_channel(float mean, float rstd, float weight, float bias,
                                                           bool has_kink) {
  const float z_scale = weight * rstd;
  const float z_shift = bias - mean * z_scale;
  if (is_linear_channel(weight, bias, has_kink)) {
    return {z_scale, z_shift, rstd, -(mean * rstd), 1.0F};
  }
  return {z_scale, z_shift, 1.0F / (weight < 0.0F ? -weight : weight), 0.0F, 0.0F};
}

ACTNN_HOST_DEVICE constexpr DecodeMap decode_map(float weight, float bias, bool has_kink) {
  if (is_linear_channel(weight, bias, has_kink)) {
    return {1.0F, 0.0F, weight, bias, 1.0F};
  }
  return {weight < 0.0F ? -1.0F : 1.0F, -(bias / weight), weight < 0.0F ? -weight : weight, 0.0F, 0.0F};
}

/// A running statistic after a batch with `value`, of which it takes the share `momentum`; as torch's `lerp`.
ACTNN_HOST_DEVICE constexpr float running_statistic(float running, float value, float momentum) {
  const float distance = value - running;
  return momentum < 0.5F ? running + momentum * distance : value - distance * (1.0F - momentum);
}

/// The sum of a normalization (z_scale x + z_shift) and a residual: copies are of the sum itself.
ACTNN_HOST_DEVICE constexpr NormActChannel sum_channel(float z_scale, float z_shift) {
  return {z_scale, z_shift, 1.0F, 0.0F, 0.0F};
}
ACTNN_HOST_DEVICE constexpr DecodeMap sum_decode_map() { return {1.0F, 0.0F, 1.0F, 0.0F, 0.0F}; }

/// The gradient of the weight, the sum of dz x-hat, from the sums of dz and of dz s.
ACTNN_HOST_DEVICE constexpr float weight_gradient(const DecodeMap& map, float sum, float copy_sum) {
  return map.p * copy_sum + map.q * sum;
}

/// The gradient of the input at an element: scale dz + of_copy s + shift; z = a s + b for smooth derivatives.
struct NormActGradient {
  float scale;
  float of_copy;
  float shift;
  float linear;  ///< 0 or 1
  float a;
  float b;
};
inline constexpr int64_t kNormActGradient = 6;
static_assert(sizeof(NormActGradient) == kNormActGradient * sizeof(float));

/// weight / deviation (dz - E[dz] - x-hat E[dz x-hat]) with the expectations over the batch, from the sums of dz and of
/// dz s.
ACTNN_HOST_DEVICE constexpr NormActGradient gradient_channel(const DecodeMap& map, float weight, float rstd,
                                                             float mean_gradient, float mean_gradient_copy) {
  const float scale = weight * rstd;
  const float of_normalized = weight_gradient(map, mean_gradient, mean_gradient_copy);
  return {
      scale, -(scale * of_normalized * map.p), -(scale * (mean_gradient + map.q * of_normalized)), map.linear, map.a,
      map.b};
}

}  // namespace actnn
