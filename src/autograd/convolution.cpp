#include "actnn/autograd/convolution.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

#include "src/autograd/autocast.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"

namespace actnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "actnn::convolution";

at::Tensor exact_convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                             const ConvolutionGeometry& geometry) {
  return at::convolution(input, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.transposed,
                         geometry.output_padding, geometry.groups);
}

class Convolution : public torch::autograd::Function<Convolution> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const ConvolutionGeometry& geometry,
                            const Quantization& quantization, const std::optional<at::Tensor>& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor output = exact_convolution(input, weight, bias, geometry);
    at::Tensor packed;
    if (wants_grad(weight)) {
      packed = pack_activation(ctx, input, quantization, rng_state);
    } else {
      remember_layout(ctx, input);
    }
    ctx->save_for_backward({packed, weight});
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->saved_data["stride"] = geometry.stride;
    ctx->saved_data["padding"] = geometry.padding;
    ctx->saved_data["dilation"] = geometry.dilation;
    ctx->saved_data["transposed"] = geometry.transposed;
    ctx->saved_data["output_padding"] = geometry.output_padding;
    ctx->saved_data["groups"] = geometry.groups;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kOp);
    auto& data = ctx->saved_data;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& weight = saved[1];
    const at::Tensor& grad = grad_outputs[0];
    const bool has_bias = data["has_bias"].toBool();
    const std::array<bool, 3> wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                     has_bias && ctx->needs_input_grad(2)};
    const at::Tensor input = wanted[1] ? unpack_activation(ctx, saved[0]) : activation_like(ctx, grad);
    const bool transposed = data["transposed"].toBool();
    const int64_t groups = data["groups"].toInt();
    const std::array<c10::SymInt, 1> bias_size{transposed ? weight.sym_size(1) * groups : weight.sym_size(0)};
    auto grads = at::convolution_backward_symint(
        grad, input, weight, has_bias ? at::OptionalSymIntArrayRef(bias_size) : at::OptionalSymIntArrayRef(),
        data["stride"].toSymIntVector(), data["padding"].toSymIntVector(), data["dilation"].toSymIntVector(),
        transposed, data["output_padding"].toSymIntVector(), groups, wanted);
    return {std::get<0>(grads), std::get<1>(grads), std::get<2>(grads), {}, {}, {}};
  }
};

/// What the schema's arguments say, expanded to one entry per spatial dimension and checked.
struct Arguments {
  ConvolutionGeometry geometry;
  Quantization quantization;
};

Arguments check_arguments(const at::Tensor& input, const at::Tensor& weight, c10::IntArrayRef stride,
                          c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                          c10::IntArrayRef output_padding, int64_t groups, int64_t bits, int64_t group_size,
                          bool stochastic) {
  check_floating(kOp, "input", input);
  check_floating(kOp, "weight", weight);
  check_bits(kOp, bits);
  check_group_size(kOp, group_size);
  TORCH_CHECK_VALUE(weight.dim() >= 3 && weight.dim() <= 5, kOp,
                    ": weight must have 1 to 3 spatial dimensions (rank 3 to 5), got shape ", weight.sym_sizes());
  TORCH_CHECK_VALUE(input.dim() == weight.dim(), kOp, ": input must have rank ", weight.dim(), " for weight of shape ",
                    weight.sym_sizes(), ", got shape ", input.sym_sizes());
  const auto dimensions = static_cast<size_t>(weight.dim() - 2);
  return {{.stride = expand_list(kOp, "stride", stride, dimensions),
           .padding = expand_list(kOp, "padding", padding, dimensions),
           .dilation = expand_list(kOp, "dilation", dilation, dimensions),
           .transposed = transposed,
           .output_padding = expand_list(kOp, "output_padding", output_padding, dimensions),
           .groups = groups},
          {.bits = bits, .group_size = group_size, .stochastic = stochastic}};
}

at::Tensor convolution_autograd(const at::Tensor& input, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias, c10::IntArrayRef stride,
                                c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                                c10::IntArrayRef output_padding, int64_t groups, int64_t bits, int64_t group_size,
                                bool stochastic, const std::optional<at::Tensor>& rng_state) {
  const auto [geometry, quantization] = check_arguments(input, weight, stride, padding, dilation, transposed,
                                                        output_padding, groups, bits, group_size, stochastic);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return Convolution::apply(input, weight, bias, geometry, quantization, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return exact_convolution(input, weight, bias, geometry);
}

/// Without autograd (inference mode) nothing is saved.
at::Tensor convolution_plain(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                             c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                             bool transposed, c10::IntArrayRef output_padding, int64_t groups, int64_t bits,
                             int64_t group_size, bool stochastic, const std::optional<at::Tensor>& /*rng_state*/) {
  return exact_convolution(input, weight, bias,
                           check_arguments(input, weight, stride, padding, dilation, transposed, output_padding, groups,
                                           bits, group_size, stochastic)
                               .geometry);
}

using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, c10::IntArrayRef,
                             c10::IntArrayRef, c10::IntArrayRef, bool, c10::IntArrayRef, int64_t, int64_t, int64_t,
                             bool, const std::optional<at::Tensor>&);

const c10::TypedOperatorHandle<Signature>& convolution_op() {
  static const auto kHandle = c10::Dispatcher::singleton().findSchemaOrThrow(kOp, "").typed<Signature>();
  return kHandle;
}

at::Tensor convolution_autocast(const at::Tensor& input, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias, c10::IntArrayRef stride,
                                c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                                c10::IntArrayRef output_padding, int64_t groups, int64_t bits, int64_t group_size,
                                bool stochastic, const std::optional<at::Tensor>& rng_state) {
  const LowerPrecision lower(input.device().type());
  return convolution_op().call(lower.cast(input), lower.cast(weight), lower.cast(bias), stride, padding, dilation,
                               transposed, output_padding, groups, bits, group_size, stochastic, rng_state);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "bool transposed, int[] output_padding, int groups, int bits=4, int group_size=256, bool stochastic=True, "
      "Tensor(a!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("convolution", convolution_plain); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("convolution", convolution_autograd); }
TORCH_LIBRARY_IMPL(actnn, AutocastCPU, m) { m.impl("convolution", convolution_autocast); }
TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) { m.impl("convolution", convolution_autocast); }

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const ConvolutionGeometry& geometry, const Quantization& quantization,
                       const std::optional<at::Tensor>& rng_state) {
  const auto call = [&](const at::Tensor& batch) {
    return convolution_op().call(batch, weight, bias, geometry.stride, geometry.padding, geometry.dilation,
                                 geometry.transposed, geometry.output_padding, geometry.groups, quantization.bits,
                                 quantization.group_size, quantization.stochastic, rng_state);
  };
  const bool unbatched = input.dim() + 1 == weight.dim();
  return unbatched ? call(input.unsqueeze(0)).squeeze(0) : call(input);
}

}  // namespace actnn
