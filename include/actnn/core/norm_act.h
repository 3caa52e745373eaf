#pragma once

#include <cstdint>

#include "actnn/core/host_device.h"
#include "actnn/core/scalar_types.h"

/// \file
/// A normalization with an activation that is linear on both sides of 0 (ReLU, leaky ReLU, none), channel by channel:
///
///     x-hat = (x - mean) / sqrt(var + eps)      z = weight x-hat + bias (+ residual)      y = z if z > 0, else slope z
///
/// and what is saved of it for backward (core/sign_split.h): the side of z, and a copy s of z / |weight| ("split", s =
/// 0 at the kink) or of x-hat ("linear"). Both give x-hat and, on each side, z as linear functions of s, so that an
/// unbiased copy of s gives unbiased ones of x-hat and of y.

namespace actnn {

/// The activation, and its derivative times `gradient`, on the side of the kink that `side` names (true: z > 0). A
/// slope of 0 makes infinities 0, as ReLU does; NaN stays.
ACTNN_HOST_DEVICE constexpr float activated(float z, bool side, float slope) {
  return side || is_nan(z) ? z : slope == 0.0F ? 0.0F : slope * z;
}
ACTNN_HOST_DEVICE constexpr float activation_gradient(float gradient, bool side, float slope) {
  return side ? gradient : slope == 0.0F ? 0.0F : slope * gradient;
}

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

/// Whether a channel is saved as linear: it has no kink, or one that is far away or nowhere (weight 0, or NaN).
ACTNN_HOST_DEVICE constexpr bool is_linear_channel(float weight, float bias, bool has_kink) {
  const float size = weight < 0.0F ? -weight : weight;
  const float offset = bias < 0.0F ? -bias : bias;
  return !has_kink || !(offset <= kFarthestKink * size) || size == 0.0F;
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

/// The sum of a normalization (z_scale x + z_shift) and a residual: copies are of the sum itself, on both sides of 0.
ACTNN_HOST_DEVICE constexpr NormActChannel sum_channel(float z_scale, float z_shift) {
  return {z_scale, z_shift, 1.0F, 0.0F, 0.0F};
}
ACTNN_HOST_DEVICE constexpr DecodeMap sum_decode_map() { return {1.0F, 0.0F, 1.0F, 0.0F, 0.0F}; }

/// The gradient of the weight, the sum of dz x-hat, from the sums of dz and of dz s.
ACTNN_HOST_DEVICE constexpr float weight_gradient(const DecodeMap& map, float sum, float copy_sum) {
  return map.p * copy_sum + map.q * sum;
}

/// The gradient of the input at an element: scale dz + of_copy s + shift.
struct NormActGradient {
  float scale;
  float of_copy;
  float shift;
  float linear;  ///< 0 or 1
};
inline constexpr int64_t kNormActGradient = 4;
static_assert(sizeof(NormActGradient) == kNormActGradient * sizeof(float));

/// weight / deviation (dz - E[dz] - x-hat E[dz x-hat]) with the expectations over the batch, from the sums of dz and of
/// dz s.
ACTNN_HOST_DEVICE constexpr NormActGradient gradient_channel(const DecodeMap& map, float weight, float rstd,
                                                             float mean_gradient, float mean_gradient_copy) {
  const float scale = weight * rstd;
  const float of_normalized = weight_gradient(map, mean_gradient, mean_gradient_copy);
  return {scale, -(scale * of_normalized * map.p), -(scale * (mean_gradient + map.q * of_normalized)), map.linear};
}

}  // namespace actnn
