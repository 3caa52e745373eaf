#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "actnn/core/activation.h"

/// \file
/// The passes of a normalization with activation (core/norm_act.h) over a matrix of rows x channels, row-major: a
/// channels_last tensor. Floating tensors are float32, float16 or bfloat16; what has one value per channel is float32.
/// No host synchronization, deterministic but for the noise. Not differentiable: floor `autograd` puts them together.
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes, shapes or devices, tensors that are not contiguous, bits
/// outside 2..8, bits that derivatives of the activation cannot have.

namespace actnn {

/// (mean, biased variance) of each channel of `input`, [rows, channels].
std::tuple<at::Tensor, at::Tensor> channel_moments(const at::Tensor& input);

/// What the passes need of a normalization: (channels: `NormActChannel` [C, 5], decode: `DecodeMap` [C, 5], rstd: [C],
/// 1 / sqrt(variance + eps)). `weight` and `bias`: float32 [C], or none for 1 and 0. `has_kink`: whether an activation
/// follows.
std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_act_channels(const at::Tensor& mean, const at::Tensor& variance,
                                                                 const std::optional<at::Tensor>& weight,
                                                                 const std::optional<at::Tensor>& bias, double eps,
                                                                 bool has_kink);

/// How an activation is packed.
struct SplitPacking {
  int64_t bits = 4;         ///< 2..8, the side included; 0: no copies are packed
  bool keeps_below = true;  ///< false: copies below the kink are not wanted, and count as 0
  bool stochastic = true;   ///< false: round to nearest
  /// Another activation than leaky ReLU, and the bits of its derivatives, which are packed too: ReLU6 1, SiLU and
  /// hardswish 1..7; 0, with no copies: nothing is packed.
  PackedDerivative derivative = {};

  int64_t planes() const { return bits + derivative.bits; }
};

/// (y, packed), with `channels` of `norm_act_channels`: y = activation of normalized `input` (+ `residual`, of its
/// shape and dtype), leaky ReLU with `slope` below 0, or that of `packing.derivative`, for which `channels` have a kink
/// if it is ReLU6. `packed`: uint8, without elements if nothing is packed. `rng_state`: int64 [2], advanced; none:
/// torch's generator.
std::tuple<at::Tensor, at::Tensor> norm_act(const at::Tensor& input, const std::optional<at::Tensor>& residual,
                                            const at::Tensor& channels, double slope, const SplitPacking& packing,
                                            const std::optional<at::Tensor>& rng_state = std::nullopt);

/// (y, packed, normalized) of a norm's sum with `residual`, in one pass: y and packed as of `norm_act` with `channels`
/// of `sum_channels`, and copies of the normalized input of `normalized_bits` (2..7), with `norm_channels` of
/// `norm_act_channels` without a kink. `normalized` has no sides (core/sign_split.h). `rng_state` is advanced for each
/// of the two that is packed. The activation must be leaky ReLU, of any slope.
std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_add_act(const at::Tensor& input, const at::Tensor& residual,
                                                            const at::Tensor& channels, const at::Tensor& norm_channels,
                                                            double slope, const SplitPacking& packing,
                                                            int64_t normalized_bits,
                                                            const std::optional<at::Tensor>& rng_state = std::nullopt);

/// (channels, decode, rstd) of `norm_act_channels` with the mean and variance of `input`, [rows, channels], and an
/// update of the running statistics, [C], where there are some: running += momentum (batch - running), with the
/// unbiased variance. `num_batches_tracked` is advanced; a `momentum` of none stands for 1 / num_batches_tracked, the
/// average over all batches.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_channels(
    const at::Tensor& input, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
    const std::optional<at::Tensor>& num_batches_tracked, std::optional<double> momentum, double eps, bool has_kink);

/// What backward knows of the elements of a norm: packed copies, or, in their place, the norm's own input, computed
/// again, or copies of the normalized input of `norm_add_act`.
struct NormActCopies {
  /// With one of those in its place, only its sides and derivatives count, and it may be none if the slope is 1.
  std::optional<at::Tensor> packed;
  double slope = 1.0;
  int64_t bits = 0;                                   ///< of `packed`
  std::optional<at::Tensor> input = std::nullopt;     ///< [rows, C]
  std::optional<at::Tensor> channels = std::nullopt;  ///< with an input: its `NormActChannel` [C, 5]
  std::optional<at::Tensor> normalized = std::nullopt;
  int64_t normalized_bits = 0;
  PackedDerivative derivative = {};  ///< of `packed`, as `SplitPacking` has it; not with normalized copies

  int64_t planes() const { return bits + derivative.bits; }
};

/// Sums over rows, float32 [2, C], of dz and of dz times the copy, where dz is the gradient `grad` (+ `second_grad`) of
/// y before the activation. `decode` of `norm_act_channels`.
at::Tensor norm_act_sums(const NormActCopies& copies, const at::Tensor& grad,
                         const std::optional<at::Tensor>& second_grad, const at::Tensor& decode);

/// (channels, decode) for sums of a normalization and a residual: what `norm_act` of the normalization's input needs,
/// with the normalization's own `channels`, or, without a normalization, none. Copies are of the sum. `like`: [rows, C]
/// on the device.
std::tuple<at::Tensor, at::Tensor> sum_channels(const std::optional<at::Tensor>& channels, const at::Tensor& like);

/// (`NormActGradient` [C, 4], gradient of weight [C], of bias [C]) from the sums. `count`: rows over which mean and
/// variance were taken, or 0 if they are constants (evaluation).
std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_act_gradients(const at::Tensor& sums, const at::Tensor& decode,
                                                                  const std::optional<at::Tensor>& weight,
                                                                  const at::Tensor& rstd, const c10::SymInt& count);

/// `norm_act_gradients` of `norm_act_sums`.
std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_act_sums_and_gradients(
    const NormActCopies& copies, const at::Tensor& grad, const std::optional<at::Tensor>& second_grad,
    const at::Tensor& decode, const std::optional<at::Tensor>& weight, const at::Tensor& rstd,
    const c10::SymInt& count);

/// The gradient of the input, of the dtype and shape of `grad`.
at::Tensor norm_act_input_gradient(const NormActCopies& copies, const at::Tensor& grad,
                                   const std::optional<at::Tensor>& second_grad, const at::Tensor& gradients);

/// The same in `grad_input`, and dz in `grad_sum` if there is one: the gradient of the residual. Both are like `grad`,
/// and may alias the tensors that are read.
void norm_act_input_gradient_out(const NormActCopies& copies, const at::Tensor& grad,
                                 const std::optional<at::Tensor>& second_grad, const at::Tensor& gradients,
                                 at::Tensor& grad_input, const std::optional<at::Tensor>& grad_sum);

/// An unbiased copy of y, [rows, C] of `dtype`, the one of `norm_act`; of leaky ReLU and ReLU6.
at::Tensor norm_act_output(const at::Tensor& packed, const at::Tensor& decode, const c10::SymInt& rows,
                           at::ScalarType dtype, double slope, int64_t bits, const PackedDerivative& derivative = {});

}  // namespace actnn
