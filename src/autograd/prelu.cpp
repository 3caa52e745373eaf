#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "actnn/autograd/activation.h"
#include "src/autograd/arguments.h"
#include "src/autograd/autocast.h"
#include "src/autograd/saved_activation.h"
#include "src/autograd/saved_mask.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/rounding_names.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kPreluName = "actnn::prelu";

/// The shape in which `weight` is broadcast to a tensor of `dimensions` dimensions.
std::vector<c10::SymInt> broadcast_size(const at::Tensor& weight, size_t dimensions) {
  std::vector<c10::SymInt> size(dimensions, 1);
  if (dimensions > 1) {
    size[1] = weight.sym_numel();
  }
  return size;
}

class Prelu : public torch::autograd::Function<Prelu> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const Quantization& quantization, const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor packed;
    if (wants_grad(weight)) {
      // Without the positive elements the groups' ranges are smaller.
      packed = save_packed(ctx, input.clamp_max(0), quantization, rng_state);
    }
    ctx->save_for_backward({packed_mask(ctx, input.gt(0)), packed, weight});
    return at::prelu(input, weight);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kPreluName);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& grad = grad_outputs[0];
    const at::Tensor& weight = saved[2];
    const std::vector<c10::SymInt> size = broadcast_size(weight, static_cast<size_t>(grad.dim()));
    const at::Tensor is_positive = saved_mask(ctx, 0);
    at::Tensor grad_input;
    at::Tensor grad_weight;
    if (ctx->needs_input_grad(0)) {
      grad_input = at::where(is_positive, grad, grad.mul(weight.reshape_symint(size)));
    }
    if (ctx->needs_input_grad(1)) {
      const at::Tensor product = grad.mul(unpack_saved(ctx, saved[1])).masked_fill_(is_positive, 0);
      grad_weight = product.sum_to_size_symint(size).reshape_symint(weight.sym_sizes());
    }
    return {grad_input, grad_weight, {}, {}};
  }
};

Quantization check_arguments(const at::Tensor& input, const at::Tensor& weight, int64_t bits, int64_t group_size,
                             c10::string_view rounding, const OptionalTensor& rng_state) {
  check_floating(kPreluName, "input", input);
  check_floating(kPreluName, "weight", weight);
  TORCH_CHECK_TYPE(weight.scalar_type() == input.scalar_type(), kPreluName, ": weight must have the input's dtype ",
                   input.scalar_type(), ", got ", weight.scalar_type());
  TORCH_CHECK_VALUE(weight.device() == input.device(), kPreluName, ": weight must be on the input's device ",
                    input.device(), ", got ", weight.device());
  const c10::SymInt channels = input.dim() > 1 ? input.sym_size(1) : 1;
  TORCH_CHECK_VALUE(weight.dim() <= 1 && (weight.sym_numel() == 1 || weight.sym_numel() == channels), kPreluName,
                    ": weight must have shape [1] or [C] = [", channels, "], got shape ", weight.sym_sizes());
  return check_quantization(kPreluName, input, bits, group_size, rounding, rng_state);
}

at::Tensor prelu_kernel(const at::Tensor& input, const at::Tensor& weight, int64_t bits, int64_t group_size,
                        c10::string_view rounding, const OptionalTensor& rng_state) {
  const Quantization quantization = check_arguments(input, weight, bits, group_size, rounding, rng_state);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight))) {
    return Prelu::apply(input, weight, quantization, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return at::prelu(input, weight);
}

const auto& prelu_op() {
  static const auto kHandle = find_op<decltype(prelu_kernel)>(kPreluName);
  return kHandle;
}

at::Tensor prelu_autocast(const at::Tensor& input, const at::Tensor& weight, int64_t bits, int64_t group_size,
                          c10::string_view rounding, const OptionalTensor& rng_state) {
  const LowerPrecision lower(input.device().type());
  return prelu_op().call(lower.cast(input), lower.cast(weight), bits, group_size, rounding, rng_state);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "prelu(Tensor input, Tensor weight, int bits=4, int group_size=256, str rounding='dithered', "
      "Tensor(a!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("prelu", prelu_kernel); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("prelu", prelu_kernel); }
TORCH_LIBRARY_IMPL(actnn, AutocastCPU, m) { m.impl("prelu", prelu_autocast); }
TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) { m.impl("prelu", prelu_autocast); }

at::Tensor prelu(const at::Tensor& input, const at::Tensor& weight, const Quantization& quantization,
                 const OptionalTensor& rng_state) {
  return prelu_op().call(input, weight, quantization.bits, quantization.group_size, name_of(quantization.rounding),
                         rng_state);
}

}  // namespace actnn
