#include "src/autograd/saved_activation.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <string>

#include "actnn/core/layout.h"
#include "actnn/ops/offload.h"
#include "actnn/ops/quantize.h"
#include "actnn/ops/random.h"
#include "src/ops/activation_functions.h"
#include "src/ops/checks.h"
#include "src/ops/quantize_per_sample_checks.h"
#include "src/ops/tensors.h"

namespace actnn {

void save_layout(torch::autograd::AutogradContext* ctx, const at::Tensor& input) {
  ctx->saved_data["input_size"] = input.sym_sizes().vec();
  ctx->saved_data["input_stride"] = input.sym_strides().vec();
  ctx->saved_data["input_dtype"] = input.scalar_type();
}

std::optional<at::Tensor> state_for(const std::optional<at::Tensor>& rng_state, const at::Tensor& input) {
  return rng_state.has_value() || !is_traced(input) ? rng_state : default_rng_state(input.device());
}

namespace {

/// The group size 0 made explicit.
int64_t explicit_group_size(int64_t group_size, const c10::SymInt& elements) {
  return group_size != 0 ? group_size
                         : std::max(align_up(elements, kGroupSizeMultiple), c10::SymInt(kGroupSizeMultiple))
                               .guard_int(__FILE__, __LINE__);
}

/// What `data["form"]` says of a saved activation.
enum Form : int64_t { kExact, kPacked, kPackedPerSample, kPass };

bool takes_any_copy(const Retention& retention) {
  return retention.compress && !retention.sample_bits && !retention.simulate && !retention.offload;
}

void save_form(torch::autograd::AutogradContext* ctx, const PackedForm& form) {
  auto& data = ctx->saved_data;
  data["form"] = kPacked;
  data["bits"] = form.bits;
  data["group_size"] = form.group_size;
  if (form.in_columns) {
    data["channels"] = static_cast<int64_t>(*form.in_columns);
  }
}

PackedForm saved_form(torch::autograd::AutogradContext* ctx) {
  const auto& data = ctx->saved_data;
  const auto channels = data.find("channels");
  return {.bits = data.at("bits").toInt(),
          .group_size = data.at("group_size").toInt(),
          .in_columns =
              channels == data.end() ? std::nullopt : std::optional(static_cast<Channels>(channels->second.toInt()))};
}

/// A copy of the input's own.
SavedActivation save_own(torch::autograd::AutogradContext* ctx, const at::Tensor& input, const SaveOptions& saving,
                         std::optional<Channels> channels = std::nullopt) {
  const auto& [quantization, retention, rng_state] = saving;
  auto& data = ctx->saved_data;
  SavedActivation saved;
  if (!retention.compress) {
    save_layout(ctx, input);
    data["form"] = kExact;
    saved.data = input;
  } else {
    const bool has_columns = channels && !retention.sample_bits && is_group_rows(quantization.group_size) &&
                             fills_columns(input.sym_sizes(), *channels);
    const at::Tensor dense = retention.sample_bits                         ? samples_outermost(input)
                             : has_columns && *channels == Channels::kLast ? input.contiguous()
                                                                           : storage_order(input);
    save_layout(ctx, dense);
    if (retention.sample_bits) {
      const c10::SymInt elements = elements_per_sample(dense.sym_numel(), dense.sym_size(0));
      const int64_t group_size = explicit_group_size(quantization.group_size, elements);
      data["form"] = kPackedPerSample;
      data["group_size"] = group_size;
      saved.parameters = *retention.sample_bits;
      saved.data = quantize_per_sample(dense, saved.parameters,
                                       segments_code_bytes(elements, dense.sym_size(0), retention.total_bits),
                                       group_size, quantization.rounding, state_for(rng_state, input));
    } else if (has_columns) {
      save_form(ctx, {quantization.bits, quantization.group_size, channels});
      saved.data = pack_columns(dense, *channels, {quantization.bits, quantization.group_size, quantization.rounding},
                                state_for(rng_state, input));
    } else {
      const int64_t group_size = explicit_group_size(quantization.group_size, dense.sym_numel());
      save_form(ctx, {quantization.bits, group_size, std::nullopt});
      saved.data = quantize(dense, {quantization.bits, group_size, quantization.rounding}, state_for(rng_state, input));
    }
    if (retention.simulate) {
      saved = {saved_activation(ctx, saved), at::Tensor()};
      data["form"] = kExact;
    }
  }
  if (retention.offload && !input.device().is_cpu() && !is_traced(input)) {
    data["offloaded_from"] = input.device();
    saved.data = offload(saved.data);
  }
  return saved;
}

}  // namespace

bool has_pass_copy(const at::Tensor& input, const Retention& retention) {
  return takes_any_copy(retention) && find_pass_copy(input).has_value();
}

SavedActivation save_activation(torch::autograd::AutogradContext* ctx, const at::Tensor& input,
                                const SaveOptions& saving, std::optional<Channels> channels) {
  const std::optional<SharedCopy> shared = takes_any_copy(saving.retention) ? find_copy(input) : std::nullopt;
  if (!shared) {
    return save_own(ctx, input, saving, channels);
  }
  save_layout(ctx, input);
  auto& data = ctx->saved_data;
  if (const auto* copy = std::get_if<InputCopy>(&*shared)) {
    save_form(ctx, copy->form);
    data["activation"] = static_cast<int64_t>(copy->kind);
    return {copy->packed, at::Tensor()};
  }
  const auto& copy = std::get<PassCopy>(*shared);
  data["form"] = kPass;
  data["bits"] = copy.bits;
  save_fused_activation(ctx, copy.activation);
  return {copy.packed, copy.decode};
}

at::Tensor saved_activation(torch::autograd::AutogradContext* ctx, const SavedActivation& saved) {
  auto& data = ctx->saved_data;
  const auto device = data.find("offloaded_from");
  const at::Tensor local = device == data.end() ? saved.data : fetch(saved.data, device->second.toDevice());
  if (data["form"].toInt() == kExact) {
    return local;
  }
  const auto size = data["input_size"].toSymIntVector();
  const auto stride = data["input_stride"].toSymIntVector();
  const at::ScalarType dtype = data["input_dtype"].toScalarType();
  if (data["form"].toInt() == kPass) {
    return PassCopy{local, saved.parameters, saved_fused_activation(ctx), data["bits"].toInt()}.decoded(size, dtype);
  }
  if (data["form"].toInt() == kPackedPerSample) {
    return dequantize_per_sample(local, saved.parameters, size, stride, dtype, data["group_size"].toInt());
  }
  const at::Tensor copy = unpack(local, saved_form(ctx), size, stride, dtype);
  const auto kind = data.find("activation");
  return kind == data.end() ? copy : activate(static_cast<ActivationKind>(kind->second.toInt()), copy);
}

at::Tensor save_packed(torch::autograd::AutogradContext* ctx, const at::Tensor& input, const Quantization& quantization,
                       const std::optional<at::Tensor>& rng_state, std::optional<Channels> channels) {
  return save_own(ctx, input, {quantization, {}, rng_state}, channels).data;
}

std::optional<InputCopy> saved_input_copy(torch::autograd::AutogradContext* ctx, const at::Tensor& packed,
                                          ActivationKind kind, const at::Tensor& output) {
  if (is_traced(output) || ctx->saved_data["input_stride"].toIntVector() != output.strides()) {
    return std::nullopt;
  }
  return InputCopy{packed, saved_form(ctx), kind};
}

at::Tensor unpack_saved(torch::autograd::AutogradContext* ctx, const at::Tensor& packed) {
  return saved_activation(ctx, {packed, {}});
}

void check_save_options(const char* op, const at::Tensor& input, const SaveOptions& saving) {
  const auto& [quantization, retention, rng_state] = saving;
  if (quantization.group_size != 0) {
    check_group_size(op, quantization.group_size);
  }
  check_rng_state(op, rng_state, input.device());
  if (!retention.sample_bits) {
    check_bits(op, quantization.bits);
    return;
  }
  const at::Tensor& bits = *retention.sample_bits;
  TORCH_CHECK_VALUE(input.dim() >= 1, op, ": input must have a sample dimension for sample_bits, got a 0-D tensor");
  TORCH_CHECK_VALUE(bits.defined() && bits.scalar_type() == at::kByte && bits.dim() == 1 && bits.is_contiguous() &&
                        bits.sym_numel() == input.sym_size(0) && bits.device() == input.device(),
                    op, ": sample_bits must be a contiguous uint8 tensor of shape [", input.sym_size(0), "] on ",
                    input.device(), ", got ", bits.defined() ? bits.toString() : "none", " of shape ",
                    bits.defined() ? bits.sym_sizes() : c10::SymIntArrayRef());
  TORCH_CHECK_VALUE(retention.total_bits >= input.sym_size(0), op, ": total_bits must be at least one per sample (",
                    input.sym_size(0), "), got ", retention.total_bits);
}

at::Tensor activation_like(torch::autograd::AutogradContext* ctx, const at::Tensor& like) {
  auto& data = ctx->saved_data;
  return at::empty_strided_symint(data["input_size"].toSymIntVector(), data["input_stride"].toSymIntVector(),
                                  like.options().dtype(data["input_dtype"].toScalarType()));
}

void save_fused_activation(torch::autograd::AutogradContext* ctx, const FusedActivation& activation) {
  ctx->saved_data["function"] = static_cast<int64_t>(activation.function);
  ctx->saved_data["function_slope"] = static_cast<double>(activation.slope);
}

FusedActivation saved_fused_activation(torch::autograd::AutogradContext* ctx) {
  return {static_cast<ActivationFunction>(ctx->saved_data["function"].toInt()),
          static_cast<float>(ctx->saved_data["function_slope"].toDouble())};
}

void refuse_double_backward(const char* op) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !at::GradMode::is_enabled(), op,
      ": its backward cannot be differentiated, because it was computed from a compressed copy of the activation; call "
      "backward without create_graph, or use torch's own layer where second derivatives are needed");
}

std::vector<int64_t> expand_list(const char* op, const char* argument, c10::IntArrayRef list, size_t dimensions) {
  TORCH_CHECK_VALUE(list.size() == dimensions || list.size() == 1, op, ": ", argument, " must have ",
                    dimensions == 1 ? "1 entry" : "1 or " + std::to_string(dimensions) + " entries", ", got ", list);
  return list.size() == dimensions ? list.vec() : std::vector<int64_t>(dimensions, list[0]);
}

}  // namespace actnn
