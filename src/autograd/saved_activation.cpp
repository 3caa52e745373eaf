#include "src/autograd/saved_activation.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <string>

#include "actnn/ops/quantize.h"
#include "actnn/ops/random.h"
#include "src/ops/tensors.h"

namespace actnn {

void remember_layout(torch::autograd::AutogradContext* ctx, const at::Tensor& input) {
  ctx->saved_data["input_size"] = input.sym_sizes().vec();
  ctx->saved_data["input_stride"] = input.sym_strides().vec();
  ctx->saved_data["input_dtype"] = input.scalar_type();
}

namespace {

bool is_traced(const at::Tensor& tensor) {
  return c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         tensor.key_set().has_any(c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::Functionalize}));
}

}  // namespace

std::optional<at::Tensor> state_for(const std::optional<at::Tensor>& rng_state, const at::Tensor& input) {
  return rng_state.has_value() || !is_traced(input) ? rng_state : default_rng_state(input.device());
}

at::Tensor pack_activation(torch::autograd::AutogradContext* ctx, const at::Tensor& input,
                           const Quantization& quantization, const std::optional<at::Tensor>& rng_state) {
  const at::Tensor dense = storage_order(input);
  remember_layout(ctx, dense);
  ctx->saved_data["bits"] = quantization.bits;
  ctx->saved_data["group_size"] = quantization.group_size;
  return quantize(dense, quantization, state_for(rng_state, input));
}

at::Tensor unpack_activation(torch::autograd::AutogradContext* ctx, const at::Tensor& packed) {
  auto& data = ctx->saved_data;
  return dequantize(packed, data["input_size"].toSymIntVector(), data["input_stride"].toSymIntVector(),
                    data["input_dtype"].toScalarType(),
                    {.bits = data["bits"].toInt(), .group_size = data["group_size"].toInt()});
}

at::Tensor activation_like(torch::autograd::AutogradContext* ctx, const at::Tensor& like) {
  auto& data = ctx->saved_data;
  return at::empty_strided_symint(data["input_size"].toSymIntVector(), data["input_stride"].toSymIntVector(),
                                  like.options().dtype(data["input_dtype"].toScalarType()));
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
