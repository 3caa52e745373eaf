#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>

#include "actnn/core/columns.h"
#include "actnn/core/norm_act.h"
#include "actnn/core/scalar_types.h"
#include "actnn/ops/norm_act.h"

/// \file
/// Argument checks of the ops of ops/norm_act.h, for every device, and what their kernels share.

namespace actnn {

using OptionalTensor = std::optional<at::Tensor>;

// What the ops are called in errors.
inline constexpr const char* kMoments = "actnn::channel_moments";
inline constexpr const char* kChannels = "actnn::norm_act_channels";
inline constexpr const char* kBatchNormChannels = "actnn::batch_norm_channels";
inline constexpr const char* kSumChannels = "actnn::sum_channels";
inline constexpr const char* kNormAct = "actnn::norm_act";
inline constexpr const char* kNormAddAct = "actnn::norm_add_act";
inline constexpr const char* kSums = "actnn::norm_act_sums";
inline constexpr const char* kGradients = "actnn::norm_act_gradients";
inline constexpr const char* kInputGradient = "actnn::norm_act_input_gradient";
inline constexpr const char* kOutput = "actnn::norm_act_output";

ElementType check_channel_moments(const at::Tensor& input);
void check_norm_act_channels(const at::Tensor& mean, const at::Tensor& variance, const OptionalTensor& weight,
                             const OptionalTensor& bias);
void check_sum_channels(const OptionalTensor& channels, const at::Tensor& like);
ElementType check_norm_act(const at::Tensor& input, const OptionalTensor& residual, const at::Tensor& channels,
                           const FusedActivation& activation, const NormActPacking& packing,
                           const OptionalTensor& rng_state);
ElementType check_norm_add_act(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                               const at::Tensor& norm_channels, const FusedActivation& activation,
                               const NormActPacking& packing, int64_t normalized_bits, const OptionalTensor& rng_state);
ElementType check_batch_norm_channels(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                      const OptionalTensor& num_batches_tracked, std::optional<double> momentum);
ElementType check_norm_act_sums(const NormActCopies& copies, const at::Tensor& grad, const OptionalTensor& second_grad,
                                const at::Tensor& decode);
void check_norm_act_gradients(const at::Tensor& sums, const at::Tensor& decode, const OptionalTensor& weight,
                              const at::Tensor& rstd);
ElementType check_norm_act_input_gradient(const NormActCopies& copies, const at::Tensor& grad,
                                          const OptionalTensor& second_grad, const at::Tensor& gradients,
                                          const OptionalTensor& grad_input = std::nullopt,
                                          const OptionalTensor& grad_sum = std::nullopt);
ElementType check_norm_act_output(const at::Tensor& packed, const at::Tensor& decode, const c10::SymInt& rows,
                                  at::ScalarType dtype, const FusedActivation& activation, int64_t bits);

/// `batch_norm_channels` by the ops for its parts, on every device.
std::tuple<at::Tensor, at::Tensor, at::Tensor> composed_batch_norm_channels(
    const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked,
    std::optional<double> momentum, double eps, bool has_kink);

/// Of a matrix [rows, channels] whose rows may be a symbol.
inline int64_t channels_of(const at::Tensor& matrix) { return matrix.sym_size(1).guard_int(__FILE__, __LINE__); }

/// The packed form of a matrix: copies of `bits`, and the masks of the activation.
template <class Int>
ColumnLayout<Int> layout_of(const Int& rows, int64_t channels, int64_t bits, int masks) {
  return {rows, channels, kDefaultGroupRows, static_cast<int>(bits), masks};
}

/// What a pass packs; none for nothing.
template <class Int>
std::optional<ColumnLayout<Int>> packed_layout(const Int& rows, int64_t channels, const FusedActivation& activation,
                                               const std::optional<int64_t>& bits) {
  const int masks = mask_count(activation.function);
  return bits && (*bits != 0 || masks != 0) ? std::optional(layout_of(rows, channels, *bits, masks)) : std::nullopt;
}

inline const void* data_or_null(const OptionalTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
inline const float* floats_or_null(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

/// The rows of a tensor [C, members] as structs.
template <class Struct>
const Struct* rows_as(const at::Tensor& tensor) {
  return reinterpret_cast<const Struct*>(tensor.const_data_ptr<float>());
}
template <class Struct>
Struct* mutable_rows_as(const at::Tensor& tensor) {
  return reinterpret_cast<Struct*>(tensor.mutable_data_ptr<float>());
}

/// A new float32 tensor [channels, members], or [channels] without members.
at::Tensor per_channel(const at::Tensor& like, int64_t channels, int64_t members = 0);

/// A new packed tensor on the CPU with its header, and zeros between parameters and codes; without elements for none.
at::Tensor empty_packed(const std::optional<ColumnLayout<int64_t>>& layout, const PackedHeader& header,
                        const at::Tensor& like);

}  // namespace actnn
