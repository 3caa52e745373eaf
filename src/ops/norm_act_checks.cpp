#include "src/ops/norm_act_checks.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "src/ops/activation_names.h"
#include "src/ops/checks.h"
#include "src/ops/packed_header.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

ElementType check_matrix(const char* op, const char* argument, const at::Tensor& matrix) {
  const ElementType type = check_floating(op, argument, matrix);
  TORCH_CHECK_VALUE(matrix.dim() == 2, op, ": ", argument, " must be [rows, channels], got shape ", matrix.sym_sizes());
  TORCH_CHECK_VALUE(matrix.is_contiguous(), op, ": ", argument, " must be contiguous, got strides ",
                    matrix.sym_strides());
  TORCH_CHECK_VALUE(matrix.sym_size(1) > 0, op, ": ", argument, " must have channels, got shape ", matrix.sym_sizes());
  return type;
}

/// Of the shape, dtype and device of `matrix`.
void check_like(const char* op, const char* argument, const OptionalTensor& tensor, const char* other,
                const at::Tensor& matrix) {
  if (!tensor) {
    return;
  }
  check_matrix(op, argument, *tensor);
  TORCH_CHECK_VALUE(tensor->sym_sizes() == matrix.sym_sizes() && tensor->device() == matrix.device(), op, ": ",
                    argument, " must have shape and device of ", other, ", ", matrix.sym_sizes(), " on ",
                    matrix.device(), ", got ", tensor->sym_sizes(), " on ", tensor->device());
  TORCH_CHECK_TYPE(tensor->scalar_type() == matrix.scalar_type(), op, ": ", argument, " must have the dtype of ", other,
                   ", ", matrix.scalar_type(), ", got ", tensor->scalar_type());
}

void check_floats(const char* op, const char* argument, const OptionalTensor& tensor, c10::SymIntArrayRef size,
                  c10::Device device) {
  if (!tensor) {
    return;
  }
  TORCH_CHECK_TYPE(tensor->scalar_type() == at::kFloat, op, ": ", argument, " must be float32, got ",
                   tensor->scalar_type());
  TORCH_CHECK_VALUE(tensor->sym_sizes() == size && tensor->is_contiguous(), op, ": ", argument,
                    " must be contiguous of shape ", size, ", got ", tensor->sym_sizes());
  TORCH_CHECK_VALUE(tensor->device() == device, op, ": ", argument, " must be on ", device, ", got ", tensor->device());
}

/// Bits of codes beside the activation's masks.
void check_code_bits(const char* op, int64_t bits, int64_t fewest, const FusedActivation& activation) {
  const int64_t most = has_kink(activation.function) ? kMaxBits - 1 : kMaxBits;
  TORCH_CHECK_VALUE(bits >= fewest && bits <= most, op, ": bits must be in ", fewest, "..", most, " for ",
                    name_of(activation.function), ", got ", bits);
}

void check_normalized_bits(const char* op, int64_t bits) {
  TORCH_CHECK_VALUE(bits >= kMinBits && bits <= kMaxBits, op, ": normalized_bits must be in 1..8, got ", bits);
}

void check_copies(const char* op, const at::Tensor& packed, const at::Tensor& channels, int64_t members,
                  const c10::SymInt& rows, int64_t bits, int masks) {
  TORCH_CHECK_VALUE(channels.dim() == 2, op, ": the channels' coefficients must be 2-D, got shape ",
                    channels.sym_sizes());
  check_floats(op, "the channels' coefficients", channels, {channels.sym_size(0), members}, packed.device());
  check_packed(op, "packed", packed, layout_of(rows, channels.size(0), bits, masks).bytes());
}

ElementType check_gradient(const char* op, const NormActCopies& copies, const at::Tensor& grad,
                           const OptionalTensor& second_grad, const at::Tensor& channels, int64_t members) {
  const ElementType type = check_matrix(op, "grad", grad);
  check_like(op, "second_grad", second_grad, "grad", grad);
  TORCH_CHECK_VALUE(channels.dim() == 2 && grad.sym_size(1) == channels.sym_size(0), op,
                    ": the channels' coefficients must be [C, ", members, "] for a gradient [rows, C], got shapes ",
                    channels.sym_sizes(), " and ", grad.sym_sizes());
  check_floats(op, "the channels' coefficients", channels, {grad.sym_size(1), members}, grad.device());
  const int masks = mask_count(copies.activation.function);
  const bool replaced = copies.input || copies.normalized;
  check_code_bits(op, copies.bits, 0, copies.activation);
  if (copies.packed) {
    TORCH_CHECK_VALUE(grad.device() == copies.packed->device(), op, ": grad must be on ", copies.packed->device(),
                      ", got ", grad.device());
    check_copies(op, *copies.packed, channels, members, grad.sym_size(0), copies.bits, masks);
  }
  if (copies.normalized) {
    check_normalized_bits(op, copies.normalized_bits);
    check_packed(op, "normalized", *copies.normalized,
                 layout_of(grad.sym_size(0), channels.size(0), copies.normalized_bits, 0).bytes());
    TORCH_CHECK_VALUE(copies.normalized->device() == grad.device(), op, ": normalized must be on ", grad.device(),
                      ", got ", copies.normalized->device());
  }
  TORCH_CHECK_VALUE(!copies.input || !copies.normalized, op, ": an input and normalized copies exclude each other");
  TORCH_CHECK_VALUE(replaced || (copies.packed && copies.bits != 0), op,
                    ": copies of some bits are needed, or an input or normalized copies in their place");
  TORCH_CHECK_VALUE(copies.packed || masks == 0, op, ": packed is needed for the masks of ",
                    name_of(copies.activation.function));
  TORCH_CHECK_VALUE(copies.input.has_value() == copies.channels.has_value(), op,
                    ": an input and its channels' coefficients go together");
  check_like(op, "input", copies.input, "grad", grad);
  check_floats(op, "the input's channels", copies.channels, {grad.sym_size(1), kNormActChannel}, grad.device());
  return type;
}

}  // namespace

ElementType check_channel_moments(const at::Tensor& input) { return check_matrix(kMoments, "input", input); }

void check_norm_act_channels(const at::Tensor& mean, const at::Tensor& variance, const OptionalTensor& weight,
                             const OptionalTensor& bias) {
  TORCH_CHECK_VALUE(mean.dim() == 1, kChannels, ": mean must be 1-D, got shape ", mean.sym_sizes());
  check_floats(kChannels, "mean", mean, mean.sym_sizes(), mean.device());
  check_floats(kChannels, "variance", variance, mean.sym_sizes(), mean.device());
  check_floats(kChannels, "weight", weight, mean.sym_sizes(), mean.device());
  check_floats(kChannels, "bias", bias, mean.sym_sizes(), mean.device());
}

ElementType check_batch_norm_channels(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                      const OptionalTensor& num_batches_tracked, std::optional<double> momentum) {
  const ElementType type = check_matrix(kBatchNormChannels, "input", input);
  const c10::SymInt channels = input.sym_size(1);
  check_floats(kBatchNormChannels, "weight", weight, {channels}, input.device());
  check_floats(kBatchNormChannels, "bias", bias, {channels}, input.device());
  const auto check_running = [&](const char* argument, const OptionalTensor& running) {
    TORCH_CHECK_VALUE(!running || (running->dim() == 1 && running->sym_size(0) == channels &&
                                   running->device() == input.device() && running->is_floating_point()),
                      kBatchNormChannels, ": ", argument, " must be floating, of shape [", channels, "] on ",
                      input.device(), ", got ", running->toString(), " of shape ", running->sym_sizes());
  };
  check_running("running_mean", running_mean);
  check_running("running_var", running_var);
  TORCH_CHECK_VALUE(!num_batches_tracked ||
                        (num_batches_tracked->scalar_type() == at::kLong && num_batches_tracked->sym_numel() == 1 &&
                         num_batches_tracked->device() == input.device()),
                    kBatchNormChannels, ": num_batches_tracked must be one int64 number on ", input.device());
  TORCH_CHECK_VALUE(momentum || num_batches_tracked || !(running_mean || running_var), kBatchNormChannels,
                    ": without a momentum, num_batches_tracked is needed");
  return type;
}

void check_sum_channels(const OptionalTensor& channels, const at::Tensor& like) {
  check_matrix(kSumChannels, "like", like);
  check_floats(kSumChannels, "channels", channels, {like.sym_size(1), kNormActChannel}, like.device());
}

ElementType check_norm_act(const at::Tensor& input, const OptionalTensor& residual, const at::Tensor& channels,
                           const FusedActivation& activation, const NormActPacking& packing,
                           const OptionalTensor& rng_state) {
  const ElementType type = check_matrix(kNormAct, "input", input);
  check_like(kNormAct, "residual", residual, "input", input);
  check_floats(kNormAct, "channels", channels, {input.sym_size(1), kNormActChannel}, input.device());
  check_code_bits(kNormAct, packing.bits.value_or(0), 0, activation);
  TORCH_CHECK_VALUE(!residual || !is_smooth(activation.function), kNormAct, ": ", name_of(activation.function),
                    " takes no residual");
  check_rng_state(kNormAct, rng_state, input.device());
  return type;
}

ElementType check_norm_add_act(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                               const at::Tensor& norm_channels, const FusedActivation& activation,
                               const NormActPacking& packing, int64_t normalized_bits,
                               const OptionalTensor& rng_state) {
  const ElementType type = check_matrix(kNormAddAct, "input", input);
  check_like(kNormAddAct, "residual", residual, "input", input);
  check_floats(kNormAddAct, "channels", channels, {input.sym_size(1), kNormActChannel}, input.device());
  check_floats(kNormAddAct, "norm_channels", norm_channels, {input.sym_size(1), kNormActChannel}, input.device());
  TORCH_CHECK_VALUE(
      activation.function == ActivationFunction::kLeakyReLU || activation.function == ActivationFunction::kIdentity,
      kNormAddAct, ": activation must be leaky_relu or identity, got ", name_of(activation.function));
  check_code_bits(kNormAddAct, packing.bits.value_or(0), 0, activation);
  check_normalized_bits(kNormAddAct, normalized_bits);
  check_rng_state(kNormAddAct, rng_state, input.device());
  return type;
}

ElementType check_norm_act_sums(const NormActCopies& copies, const at::Tensor& grad, const OptionalTensor& second_grad,
                                const at::Tensor& decode) {
  return check_gradient(kSums, copies, grad, second_grad, decode, kDecodeMap);
}

void check_norm_act_gradients(const at::Tensor& sums, const at::Tensor& decode, const OptionalTensor& weight,
                              const at::Tensor& rstd) {
  TORCH_CHECK_VALUE(rstd.dim() == 1, kGradients, ": rstd must be 1-D, got shape ", rstd.sym_sizes());
  const c10::SymInt channels = rstd.sym_size(0);
  const c10::Device device = rstd.device();
  check_floats(kGradients, "rstd", rstd, {channels}, device);
  check_floats(kGradients, "sums", sums, {2, channels}, device);
  check_floats(kGradients, "decode", decode, {channels, kDecodeMap}, device);
  check_floats(kGradients, "weight", weight, {channels}, device);
}

ElementType check_norm_act_input_gradient(const NormActCopies& copies, const at::Tensor& grad,
                                          const OptionalTensor& second_grad, const at::Tensor& gradients,
                                          const OptionalTensor& grad_input, const OptionalTensor& grad_sum) {
  check_like(kInputGradient, "grad_input", grad_input, "grad", grad);
  check_like(kInputGradient, "grad_sum", grad_sum, "grad", grad);
  return check_gradient(kInputGradient, copies, grad, second_grad, gradients, kNormActGradient);
}

ElementType check_norm_act_output(const at::Tensor& packed, const at::Tensor& decode, const c10::SymInt& rows,
                                  at::ScalarType dtype, const FusedActivation& activation, int64_t bits) {
  TORCH_CHECK_VALUE(rows >= 0, kOutput, ": rows must not be negative, got ", rows);
  check_code_bits(kOutput, bits, kMinBits, activation);
  check_copies(kOutput, packed, decode, kDecodeMap, rows, bits, mask_count(activation.function));
  return check_element_type(kOutput, dtype);
}

at::Tensor per_channel(const at::Tensor& like, int64_t channels, int64_t members) {
  const auto options = like.options().dtype(at::kFloat);
  return members == 0 ? at::empty({channels}, options) : at::empty({channels, members}, options);
}

at::Tensor empty_packed(const std::optional<ColumnLayout<int64_t>>& layout, const PackedHeader& header,
                        const at::Tensor& like) {
  if (!layout) {
    return empty_bytes(0, like);
  }
  at::Tensor packed = empty_bytes(layout->bytes(), like);
  auto* bytes = packed.mutable_data_ptr<uint8_t>();
  write_header(header, bytes);
  std::fill(bytes + kHeaderBytes + layout->groups() * static_cast<int64_t>(sizeof(GroupParameters)),
            bytes + layout->codes(), uint8_t{0});
  return packed;
}

}  // namespace actnn
