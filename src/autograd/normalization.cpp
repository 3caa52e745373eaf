#include "src/autograd/normalization.h"

#include "src/autograd/saved_activation.h"
#include "src/ops/tensors.h"

namespace actnn {

void save_parameter_presence(torch::autograd::AutogradContext* ctx, bool has_weight, bool has_bias) {
  ctx->saved_data["has_weight"] = has_weight;
  ctx->saved_data["has_bias"] = has_bias;
}

std::array<bool, 3> wanted_gradients(torch::autograd::AutogradContext* ctx) {
  const bool has_weight = ctx->saved_data["has_weight"].toBool();
  const bool has_bias = ctx->saved_data["has_bias"].toBool();
  // Only the tensors that are there have an index.
  return {ctx->needs_input_grad(0), has_weight && ctx->needs_input_grad(1),
          has_bias && ctx->needs_input_grad(has_weight ? 2 : 1)};
}

bool wants_gradients(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                     const std::optional<at::Tensor>& bias) {
  return wants_grad(input) || wants_grad(weight) || wants_grad(bias);
}

void save_normalization(torch::autograd::AutogradContext* ctx, const Normalization& tensors, bool has_weight,
                        bool has_bias, const Quantization& quantization, const std::optional<at::Tensor>& rng_state) {
  at::Tensor packed;
  if (wants_grad(tensors.input) || wants_grad(tensors.weight)) {
    packed = save_packed(ctx, tensors.input, quantization, rng_state);
  } else {
    save_layout(ctx, storage_order(tensors.input));
  }
  ctx->save_for_backward({packed, tensors.weight, tensors.bias, tensors.mean, tensors.rstd});
  save_parameter_presence(ctx, has_weight, has_bias);
}

SavedNormalization saved_normalization(torch::autograd::AutogradContext* ctx, const at::Tensor& grad_output) {
  const torch::autograd::variable_list saved = ctx->get_saved_variables();
  const std::array<bool, 3> wanted = wanted_gradients(ctx);
  return {{.input = wanted[0] || wanted[1] ? unpack_saved(ctx, saved[0]) : activation_like(ctx, grad_output),
           .weight = saved[1],
           .bias = saved[2],
           .mean = saved[3],
           .rstd = saved[4]},
          wanted};
}

}  // namespace actnn
