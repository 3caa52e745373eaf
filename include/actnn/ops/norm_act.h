#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "actnn/core/activation.h"
#include "actnn/core/rounding.h"

/// \file
/// The passes of a normalization with activation (core/norm_act.h) over a matrix of rows x channels, row-major: a
/// channels_last tensor. Floating tensors are float32, float16 or bfloat16; what has one value per channel is float32.
/// No host synchronization, deterministic but for the noise. Not differentiable: floor `autograd` puts them together.
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes, shapes or devices, tensors that are not contiguous, bits out
/// of range.

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

/// How a pass packs what backward needs.
struct NormActPacking {
  /// Of copies, 1..8, up to 7 where the activation has a kink; 0: the masks of the activation alone; none: nothing.
  std::optional<int64_t> bits = 4;
  bool keeps_below = true;  ///< false: copies below a kink are not wanted, and count as 0
  Rounding rounding = Rounding::kDithered;
};

/// (y, packed), with `channels` of `norm_act_channels`: y = activation of normalized `input` (+ `residual`, of its
/// shape and dtype). `packed`: uint8, in groups of 256 rows of a channel (core/columns.h), without elements if nothing
/// is packed. Smooth activations take no residual. `rng_state`: int64 [2], advanced; none: torch's generator.
std::tuple<at::Tensor, at::Tensor> norm_act(const at::Tensor& input, const std::optional<at::Tensor>& residual,
                                            const at::Tensor& channels, const FusedActivation& activation,
                                            const NormActPacking& packing,
                                            const std::optional<at::Tensor>& rng_state = std::nullopt);

/// (y, packed, normalized) of a norm's sum with `residual`, in one pass: y and packed as of `norm_act` with `channels`
/// of `sum_channels`, and copies of the normalized input of `normalized_bits` (1..8), with `norm_channels` of
/// `norm_act_channels` without a kink. `rng_state` is advanced for each of the two that is packed. The activation must
/// be leaky ReLU, of any slope, or the identity.
std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_add_act(const at::Tensor& input, const at::Tensor& residual,
                                                            const at::Tensor& channels, const at::Tensor& norm_channels,
                                                            const FusedActivation& activation,
                                                            const NormActPacking& packing, int64_t normalized_bits,
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
  /// With one of those in its place, only its masks count, and it may be none if the activation has none.
  std::optional<at::Tensor> packed;
  FusedActivation activation = {};
  int64_t bits = 0;                                   ///< of the copies in `packed`; 0: it has masks alone
  std::optional<at::Tensor> input = std::nullopt;     ///< [rows, C]
  std::optional<at::Tensor> channels = std::nullopt;  ///< with an input: its `NormActChannel` [C, 5]
  std::optional<at::Tensor> normalized = std::nullopt;
  int64_t normalized_bits = 0;
};

/// Sums over rows, float32 [2, C], of dz and of dz times the copy, where dz is the gradient `grad` (+ `second_grad`) of
/// y before the activation. `decode` of `norm_act_channels`.
at::Tensor norm_act_sums(const NormActCopies& copies, const at::Tensor& grad,
                         const std::optional<at::Tensor>& second_grad, const at::Tensor& decode);

/// (channels, decode) for sums of a normalization and a residual: what `norm_act` of the normalization's input needs,
/// with the normalization's own `channels`, or, without a normalization, none. Copies are of the sum. `like`: [rows, C]
/// on the device.
std::tuple<at::Tensor, at::Tensor> sum_channels(const std::optional<at::Tensor>& channels, const at::Tensor& like);

/// (`NormActGradient` [C, 6], gradient of weight [C], of bias [C]) from the sums. `count`: rows over which mean and
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

/// A copy of y, [rows, C] of `dtype`, from the copies in `packed`: unbiased, but for a smooth activation's bias of the
/// order of the copies' variance.
at::Tensor norm_act_output(const at::Tensor& packed, const at::Tensor& decode, const c10::SymInt& rows,
                           at::ScalarType dtype, const FusedActivation& activation, int64_t bits);

}  // namespace actnn
