#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>
#include <utility>

#include "actnn/cuda/norm_act.h"
#include "actnn/cuda/norm_act_channels.h"
#include "src/ops/activation_names.h"
#include "src/ops/copies_arguments.h"
#include "src/ops/cuda_support.h"
#include "src/ops/norm_act_checks.h"
#include "src/ops/rounding_names.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using TwoTensors = std::tuple<at::Tensor, at::Tensor>;
using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using SumsKernel = CopiesSignature<at::Tensor, const at::Tensor&, const OptionalTensor&, const at::Tensor&>;
using SumsAndGradientsKernel = CopiesSignature<ThreeTensors, const at::Tensor&, const OptionalTensor&,
                                               const at::Tensor&, const OptionalTensor&, const at::Tensor&, int64_t>;

constexpr const char* kNormAct = "actnn::norm_act";
constexpr const char* kSums = "actnn::norm_act_sums";
constexpr const char* kInputGradient = "actnn::norm_act_input_gradient";
constexpr const char* kOutput = "actnn::norm_act_output";

/// It belongs to the stream: the caching allocator hands it on only to later work of the same stream.
at::Tensor scratch_for(const at::Tensor& matrix, ElementType type) {
  return at::empty({cuda::norm_act_scratch(matrix.size(0), matrix.size(1), type)}, matrix.options().dtype(at::kFloat));
}

TwoTensors moments_cuda(const at::Tensor& input) {
  const ElementType type = check_channel_moments(input);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor scratch = scratch_for(input, type);
  at::Tensor mean = per_channel(input, input.size(1));
  at::Tensor variance = per_channel(input, input.size(1));
  check_launch(cuda::channel_moments(input.const_data_ptr(), type, input.size(0), input.size(1),
                                     scratch.mutable_data_ptr<float>(), mean.mutable_data_ptr<float>(),
                                     variance.mutable_data_ptr<float>(), current_stream()));
  return {mean, variance};
}

ThreeTensors channels_cuda(const at::Tensor& mean, const at::Tensor& variance, const OptionalTensor& weight,
                           const OptionalTensor& bias, double eps, bool has_kink) {
  check_norm_act_channels(mean, variance, weight, bias);
  const c10::cuda::CUDAGuard guard(mean.device());
  const int64_t count = mean.size(0);
  at::Tensor channels = per_channel(mean, count, kNormActChannel);
  at::Tensor decode = per_channel(mean, count, kDecodeMap);
  at::Tensor rstd = per_channel(mean, count);
  check_launch(cuda::norm_act_channels({.mean = mean.const_data_ptr<float>(),
                                        .variance = variance.const_data_ptr<float>(),
                                        .weight = floats_or_null(weight),
                                        .bias = floats_or_null(bias),
                                        .eps = static_cast<float>(eps),
                                        .has_kink = has_kink,
                                        .channels = count},
                                       mutable_rows_as<NormActChannel>(channels), mutable_rows_as<DecodeMap>(decode),
                                       rstd.mutable_data_ptr<float>(), current_stream()));
  return {channels, decode, rstd};
}

TwoTensors sum_channels_cuda(const OptionalTensor& norm, const at::Tensor& like) {
  check_sum_channels(norm, like);
  const c10::cuda::CUDAGuard guard(like.device());
  const int64_t count = like.size(1);
  at::Tensor channels = per_channel(like, count, kNormActChannel);
  at::Tensor decode = per_channel(like, count, kDecodeMap);
  check_launch(cuda::sum_channels(norm ? rows_as<NormActChannel>(*norm) : nullptr, count,
                                  mutable_rows_as<NormActChannel>(channels), mutable_rows_as<DecodeMap>(decode),
                                  current_stream()));
  return {channels, decode};
}

/// With running statistics in float32, as nearly all models have them; otherwise, the ops of each part do it.
ThreeTensors batch_norm_channels_cuda(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                      const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
                                      double eps, bool has_kink) {
  const ElementType type =
      check_batch_norm_channels(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum);
  const auto is_plain = [&](const OptionalTensor& running) {
    return !running || (running->scalar_type() == at::kFloat && running->is_contiguous());
  };
  if (input.size(0) == 0 || !is_plain(running_mean) || !is_plain(running_var)) {
    return composed_batch_norm_channels(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum,
                                        eps, has_kink);
  }
  const c10::cuda::CUDAGuard guard(input.device());
  const int64_t count = input.size(1);
  const at::Tensor scratch = scratch_for(input, type);
  at::Tensor channels = per_channel(input, count, kNormActChannel);
  at::Tensor decode = per_channel(input, count, kDecodeMap);
  at::Tensor rstd = per_channel(input, count);
  const auto mutable_floats = [](const OptionalTensor& tensor) {
    return tensor ? tensor->mutable_data_ptr<float>() : nullptr;
  };
  check_launch(cuda::batch_norm_channels(
      input.const_data_ptr(), type, input.size(0), count, scratch.mutable_data_ptr<float>(),
      {.weight = floats_or_null(weight),
       .bias = floats_or_null(bias),
       .eps = static_cast<float>(eps),
       .has_kink = has_kink,
       .running_mean = mutable_floats(running_mean),
       .running_var = mutable_floats(running_var),
       .batches = num_batches_tracked ? num_batches_tracked->mutable_data_ptr<int64_t>() : nullptr,
       .momentum = static_cast<float>(momentum.value_or(num_batches_tracked ? -1.0 : 0.0))},
      mutable_rows_as<NormActChannel>(channels), mutable_rows_as<DecodeMap>(decode), rstd.mutable_data_ptr<float>(),
      current_stream()));
  return {channels, decode, rstd};
}

/// New tensors for the results of a forward, and its arguments.
struct ForwardPass {
  at::Tensor y;
  at::Tensor packed;
  cuda::NormActForward arguments;

  bool packs() const { return arguments.packed != nullptr; }
};

ForwardPass forward_pass(const at::Tensor& input, const OptionalTensor& residual, const at::Tensor& channels,
                         ElementType type, const FusedActivation& activation, const NormActPacking& packing,
                         const OptionalTensor& rng_state) {
  const auto layout = packed_layout(input.size(0), input.size(1), activation, packing.bits);
  ForwardPass pass{
      .y = at::empty_like(input), .packed = empty_bytes(layout ? layout->bytes() : 0, input), .arguments = {}};
  pass.arguments = {.x = input.const_data_ptr(),
                    .residual = data_or_null(residual),
                    .y = pass.y.mutable_data_ptr(),
                    .type = type,
                    .layout = layout.value_or(layout_of(input.size(0), input.size(1), 0, 0)),
                    .channels = rows_as<NormActChannel>(channels),
                    .activation = activation,
                    .keeps_below = packing.keeps_below,
                    .packed = layout ? pass.packed.mutable_data_ptr<uint8_t>() : nullptr,
                    .random = layout ? random_source(rng_state) : cuda::RandomSource{},
                    .rounding = packing.rounding};
  return pass;
}

TwoTensors norm_act_cuda(const at::Tensor& input, const OptionalTensor& residual, const at::Tensor& channels,
                         c10::string_view activation, double slope, std::optional<int64_t> bits, bool keeps_below,
                         c10::string_view rounding, const OptionalTensor& rng_state) {
  const FusedActivation fused = fused_activation(kNormAct, activation, slope);
  const NormActPacking packing{bits, keeps_below, rounding_of(kNormAct, rounding)};
  const ElementType type = check_norm_act(input, residual, channels, fused, packing, rng_state);
  const c10::cuda::CUDAGuard guard(input.device());
  ForwardPass pass = forward_pass(input, residual, channels, type, fused, packing, rng_state);
  check_launch(cuda::norm_act(pass.arguments, current_stream()));
  if (pass.packs()) {
    advance_random_state(rng_state);
  }
  return {std::move(pass.y), std::move(pass.packed)};
}

ThreeTensors norm_add_act_cuda(const at::Tensor& input, const at::Tensor& residual, const at::Tensor& channels,
                               const at::Tensor& norm_channels, c10::string_view activation, double slope,
                               std::optional<int64_t> bits, int64_t normalized_bits, bool keeps_below,
                               c10::string_view rounding, const OptionalTensor& rng_state) {
  const FusedActivation fused = fused_activation(kNormAddAct, activation, slope);
  const NormActPacking packing{bits, keeps_below, rounding_of(kNormAddAct, rounding)};
  const ElementType type =
      check_norm_add_act(input, residual, channels, norm_channels, fused, packing, normalized_bits, rng_state);
  const c10::cuda::CUDAGuard guard(input.device());
  ForwardPass pass = forward_pass(input, residual, channels, type, fused, packing, rng_state);
  at::Tensor normalized = empty_bytes(layout_of(input.size(0), input.size(1), normalized_bits, 0).bytes(), input);
  pass.arguments.normalized = {.channels = rows_as<NormActChannel>(norm_channels),
                               .bits = static_cast<int>(normalized_bits),
                               .packed = normalized.mutable_data_ptr<uint8_t>(),
                               .random = random_source(rng_state)};
  if (pass.packs() && rng_state) {
    ++pass.arguments.normalized.random.shift.offset;  // the tensor is not advanced yet
  }
  check_launch(cuda::norm_act(pass.arguments, current_stream()));
  if (pass.packs()) {
    advance_random_state(rng_state);
  }
  advance_random_state(rng_state);
  return {std::move(pass.y), std::move(pass.packed), std::move(normalized)};
}

cuda::NormActBackward backward_of(const NormActCopies& copies, const at::Tensor& grad,
                                  const OptionalTensor& second_grad, ElementType type) {
  return {.packed = static_cast<const uint8_t*>(data_or_null(copies.packed)),
          .layout = layout_of(grad.size(0), grad.size(1), copies.bits, mask_count(copies.activation.function)),
          .grad = grad.const_data_ptr(),
          .second_grad = data_or_null(second_grad),
          .type = type,
          .activation = copies.activation,
          .x = data_or_null(copies.input),
          .channels_of_x = copies.channels ? rows_as<NormActChannel>(*copies.channels) : nullptr,
          .normalized = static_cast<const uint8_t*>(data_or_null(copies.normalized)),
          .normalized_bits = static_cast<int>(copies.normalized_bits)};
}

/// With bytes that begin where kernels want them.
NormActCopies aligned(NormActCopies copies) {
  for (OptionalTensor* bytes : {&copies.packed, &copies.normalized}) {
    if (*bytes) {
      *bytes = aligned_bytes(**bytes);
    }
  }
  return copies;
}

template <class... Arguments>
at::Tensor sums_cuda(const OptionalTensor& packed, const at::Tensor& grad, const OptionalTensor& second_grad,
                     const at::Tensor& decode, Arguments... arguments) {
  const NormActCopies given = copies_of(kSums, packed, arguments...);
  const ElementType type = check_norm_act_sums(given, grad, second_grad, decode);
  const c10::cuda::CUDAGuard guard(grad.device());
  const NormActCopies copies = aligned(given);
  const cuda::NormActBackward backward = backward_of(copies, grad, second_grad, type);
  const int64_t channels = backward.layout.channels;
  const at::Tensor scratch = scratch_for(grad, type);
  at::Tensor sums = at::empty({2, channels}, decode.options());
  check_launch(cuda::norm_act_sums(backward, rows_as<DecodeMap>(decode), scratch.mutable_data_ptr<float>(),
                                   sums.mutable_data_ptr<float>(), sums.mutable_data_ptr<float>() + channels,
                                   current_stream()));
  return sums;
}

ThreeTensors gradients_cuda(const at::Tensor& sums, const at::Tensor& decode, const OptionalTensor& weight,
                            const at::Tensor& rstd, int64_t count) {
  check_norm_act_gradients(sums, decode, weight, rstd);
  const c10::cuda::CUDAGuard guard(sums.device());
  const int64_t channels = rstd.size(0);
  at::Tensor gradients = per_channel(sums, channels, kNormActGradient);
  at::Tensor grad_weight = per_channel(sums, channels);
  at::Tensor grad_bias = per_channel(sums, channels);
  check_launch(cuda::norm_act_gradients({.sums = sums.const_data_ptr<float>(),
                                         .copy_sums = sums.const_data_ptr<float>() + channels,
                                         .decode = rows_as<DecodeMap>(decode),
                                         .weight = floats_or_null(weight),
                                         .rstd = rstd.const_data_ptr<float>(),
                                         .count = count,
                                         .channels = channels},
                                        mutable_rows_as<NormActGradient>(gradients),
                                        grad_weight.mutable_data_ptr<float>(), grad_bias.mutable_data_ptr<float>(),
                                        current_stream()));
  return {gradients, grad_weight, grad_bias};
}

template <class... Arguments>
ThreeTensors sums_and_gradients_cuda(const OptionalTensor& packed, const at::Tensor& grad,
                                     const OptionalTensor& second_grad, const at::Tensor& decode,
                                     const OptionalTensor& weight, const at::Tensor& rstd, int64_t count,
                                     Arguments... arguments) {
  const NormActCopies given = copies_of(kSums, packed, arguments...);
  const ElementType type = check_norm_act_sums(given, grad, second_grad, decode);
  check_norm_act_channels(rstd, rstd, weight, std::nullopt);
  const c10::cuda::CUDAGuard guard(grad.device());
  const NormActCopies copies = aligned(given);
  const cuda::NormActBackward backward = backward_of(copies, grad, second_grad, type);
  const int64_t channels = backward.layout.channels;
  const at::Tensor scratch = scratch_for(grad, type);
  at::Tensor gradients = per_channel(grad, channels, kNormActGradient);
  at::Tensor grad_weight = per_channel(grad, channels);
  at::Tensor grad_bias = per_channel(grad, channels);
  check_launch(cuda::norm_act_sums_and_gradients(
      backward,
      {.decode = rows_as<DecodeMap>(decode),
       .weight = floats_or_null(weight),
       .rstd = rstd.const_data_ptr<float>(),
       .count = count},
      scratch.mutable_data_ptr<float>(), mutable_rows_as<NormActGradient>(gradients),
      grad_weight.mutable_data_ptr<float>(), grad_bias.mutable_data_ptr<float>(), current_stream()));
  return {gradients, grad_weight, grad_bias};
}

void input_gradient_out_cuda(const OptionalTensor& packed, const at::Tensor& grad, const OptionalTensor& second_grad,
                             const at::Tensor& gradients, c10::string_view activation, double slope, int64_t bits,
                             const OptionalTensor& input, const OptionalTensor& channels,
                             const OptionalTensor& normalized, int64_t normalized_bits, at::Tensor& grad_input,
                             const OptionalTensor& grad_sum) {
  const NormActCopies given =
      copies_of(kInputGradient, packed, activation, slope, bits, input, channels, normalized, normalized_bits);
  const ElementType type = check_norm_act_input_gradient(given, grad, second_grad, gradients, grad_input, grad_sum);
  const c10::cuda::CUDAGuard guard(grad.device());
  const NormActCopies copies = aligned(given);
  check_launch(cuda::norm_act_input_gradient(backward_of(copies, grad, second_grad, type),
                                             rows_as<NormActGradient>(gradients), grad_input.mutable_data_ptr(),
                                             grad_sum ? grad_sum->mutable_data_ptr() : nullptr, current_stream()));
}

at::Tensor output_cuda(const at::Tensor& packed, const at::Tensor& decode, int64_t rows, at::ScalarType dtype,
                       c10::string_view activation, double slope, int64_t bits) {
  const FusedActivation fused = fused_activation(kOutput, activation, slope);
  const ElementType type = check_norm_act_output(packed, decode, rows, dtype, fused, bits);
  const c10::cuda::CUDAGuard guard(packed.device());
  const NormActCopies copies = aligned({.packed = packed, .activation = fused, .bits = bits});
  at::Tensor y = at::empty({rows, decode.size(0)}, packed.options().dtype(dtype));
  check_launch(cuda::norm_act_output(backward_of(copies, y, std::nullopt, type), rows_as<DecodeMap>(decode),
                                     y.mutable_data_ptr(), current_stream()));
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(actnn, CUDA, m) {
  m.impl("channel_moments", moments_cuda);
  m.impl("norm_act_channels", channels_cuda);
  m.impl("sum_channels", sum_channels_cuda);
  m.impl("batch_norm_channels", batch_norm_channels_cuda);
  m.impl("norm_act_sums_and_gradients", static_cast<SumsAndGradientsKernel*>(sums_and_gradients_cuda));
  m.impl("norm_act", norm_act_cuda);
  m.impl("norm_add_act", norm_add_act_cuda);
  m.impl("norm_act_sums", static_cast<SumsKernel*>(sums_cuda));
  m.impl("norm_act_gradients", gradients_cuda);
  m.impl("norm_act_input_gradient_out", input_gradient_out_cuda);
  m.impl("norm_act_output", output_cuda);
}

}  // namespace actnn
